//! Interrupt lines: who drives them, and what became of driving one.

/// One of several drivers of a line. The line is high while any of them holds it high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqSource(u8);

impl IrqSource {
    /// The client, through `KVM_IRQ_LINE` and irqfds.
    pub const USERSPACE: Self = Self(0);
    /// irqfds with a resample descriptor; `KVM_IRQ_LINE` does not lower their level.
    pub const IRQFD_RESAMPLE: Self = Self(1);
    /// The timer inside the hypervisor.
    pub const PIT: Self = Self(2);
    /// Number of sources that a line can tell apart.
    pub const COUNT: u8 = 32;

    /// Another source; `None` if `id` is not below [`IrqSource::COUNT`].
    pub const fn new(id: u8) -> Option<Self> {
        if id < Self::COUNT { Some(Self(id)) } else { None }
    }

    /// The source's bit in a line's state.
    pub(crate) const fn mask(self) -> u32 {
        1 << self.0
    }
}

/// Levels of `N` lines, each the OR of its sources.
#[derive(Clone, Debug)]
pub(crate) struct Lines<const N: usize>([u32; N]);

impl<const N: usize> Lines<N> {
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Sets what one source drives and returns the line's level; `None` if there is no such line.
    pub(crate) fn set(&mut self, line: usize, source: IrqSource, level: bool) -> Option<bool> {
        let state = self.0.get_mut(line)?;
        if level {
            *state |= source.mask();
        } else {
            *state &= !source.mask();
        }
        Some(*state != 0)
    }
}

/// What became of a change of a line: the answer of `KVM_IRQ_LINE_STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineStatus {
    /// Masked, or not connected: nobody will see it.
    Ignored,
    /// An earlier one is still pending: the guest sees one instead of two.
    Coalesced,
    /// Delivered to so many processors (or latched), or the line went low.
    Delivered(u32),
}

impl LineStatus {
    /// The ABI's number: below 0, 0, above 0.
    pub fn to_abi(self) -> i32 {
        match self {
            Self::Ignored => -1,
            Self::Coalesced => 0,
            Self::Delivered(n) => i32::try_from(n).unwrap_or(i32::MAX),
        }
    }

    /// The outcome of one GSI that leads to several pins.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ignored, x) | (x, Self::Ignored) => x,
            (Self::Coalesced, x) | (x, Self::Coalesced) => x,
            (Self::Delivered(a), Self::Delivered(b)) => Self::Delivered(a.saturating_add(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_or_of_its_sources() {
        let mut lines = Lines::<2>::new();
        assert_eq!(lines.set(1, IrqSource::USERSPACE, true), Some(true));
        assert_eq!(lines.set(1, IrqSource::PIT, true), Some(true));
        assert_eq!(lines.set(1, IrqSource::USERSPACE, false), Some(true));
        assert_eq!(lines.set(1, IrqSource::PIT, false), Some(false));
        assert_eq!(lines.set(2, IrqSource::PIT, true), None);
        assert!(IrqSource::new(32).is_none());
    }

    #[test]
    fn status_of_several_pins() {
        use LineStatus::*;
        for (a, b, r) in [
            (Ignored, Ignored, -1),
            (Ignored, Coalesced, 0),
            (Coalesced, Delivered(2), 2),
            (Delivered(1), Delivered(2), 3),
        ] {
            assert_eq!(a.and(b).to_abi(), r);
            assert_eq!(b.and(a).to_abi(), r);
        }
    }
}
