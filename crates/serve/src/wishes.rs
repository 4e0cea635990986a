//! What `rekvm exec` wants of whoever serves the client, and how it tells the library that the program loader puts in front of
//! the client's C library.
use user::device;

/// The library, as it is built.
pub const LIBRARY: &str = "librekvm_preload.so";
/// The program loader's list of libraries.
pub const LOADER: &str = "LD_PRELOAD";
/// The variable with the wishes, as [`Wishes::text`] writes them.
pub const VARIABLE: &str = "REKVM_EXEC";

/// What `rekvm exec` wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How the software CPU works.
    pub options: device::Options,
    /// Do not say who serves.
    pub quiet: bool,
    /// Serve child processes too.
    pub children: bool,
    /// Have CPUID tell of virtualization.
    pub cpuid: bool,
}

impl Wishes {
    /// As words with spaces between them.
    pub fn text(&self) -> String {
        let mut text = self.options.name().to_owned();
        for (word, wanted) in [("quiet", self.quiet), ("children", self.children), ("cpuid", self.cpuid)] {
            if wanted {
                text.push(' ');
                text.push_str(word);
            }
        }
        text
    }

    /// Reads what [`Self::text`] has written; other words mean nothing.
    pub fn read(text: &str) -> Self {
        let has = |word: &str| text.split(' ').any(|found| found == word);
        let options = text.split(' ').find_map(device::Options::named).unwrap_or_default();
        Self { options, quiet: has("quiet"), children: has("children"), cpuid: has("cpuid") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_arrive_as_they_were_sent() {
        for options in device::Options::ALL {
            for n in 0..8 {
                let wishes = Wishes { options, quiet: n & 1 != 0, children: n & 2 != 0, cpuid: n & 4 != 0 };
                assert_eq!(Wishes::read(&wishes.text()), wishes);
            }
        }
        assert_eq!(Wishes::read("and nothing else"), Wishes::default());
    }
}
