//! The escape key: Ctrl-A, then a letter. Everything else is the guest's.

/// Ctrl-A.
const KEY: u8 = 1;

/// What is told at start.
pub const HELP: &str = "Ctrl-A x ends the guest, Ctrl-A Ctrl-A types Ctrl-A";

/// What the user wants from the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the guest at once.
    Quit,
    /// Tell the keys.
    Help,
}

/// Separates the user's commands from the guest's input.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Appends what is the guest's to `guest`; answers the first command, and drops
    /// what was typed after a quit.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Action> {
        let mut action = None;
        for &byte in typed {
            if !std::mem::take(&mut self.pending) {
                if byte == KEY {
                    self.pending = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            match byte {
                b'x' | b'X' => return Some(Action::Quit),
                b'h' | b'H' | b'?' => action = Some(Action::Help),
                KEY | b'a' => guest.push(KEY),
                // No command: both keys were meant for the guest.
                other => guest.extend([KEY, other]),
            }
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(parts: &[&[u8]]) -> (Vec<u8>, Vec<Option<Action>>) {
        let (mut escape, mut guest) = (Escape::default(), Vec::new());
        let actions = parts.iter().map(|p| escape.filter(p, &mut guest)).collect();
        (guest, actions)
    }

    #[test]
    fn ordinary_keys_pass() {
        assert_eq!(filter(&[b"ls\r\x03"]), (b"ls\r\x03".to_vec(), vec![None]));
    }

    #[test]
    fn commands_work_across_reads() {
        assert_eq!(filter(&[b"a\x01", b"xb"]), (b"a".to_vec(), vec![None, Some(Action::Quit)]));
        assert_eq!(filter(&[b"\x01h", b"c"]), (b"c".to_vec(), vec![Some(Action::Help), None]));
    }

    #[test]
    fn the_key_itself_can_be_typed() {
        assert_eq!(filter(&[b"\x01\x01x"]).0, b"\x01x");
        assert_eq!(filter(&[b"\x01q"]).0, b"\x01q");
    }
}
