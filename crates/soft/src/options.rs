//! What the makers of a software CPU can choose. The ways differ in what they can show about the core, never in what a guest
//! may see: shadow paging and nested paging have the core fill the tables that hardware needs, and the adversarial
//! TLB forgets nothing that a processor might still know.
use core::fmt;

/// Which tables the processor walks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PagingKind {
    /// The guest's own, and looks guest-physical addresses up in the memory slots: what a processor with nested paging does.
    #[default]
    Slots,
    /// Shadow tables that the core fills, as a processor without nested paging has to.
    Shadow,
    /// The guest's own, and nested tables that the core fills for guest-physical addresses.
    Nested,
}

/// What the processor's TLB keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlbKind {
    /// As much as is quick.
    #[default]
    Normal,
    /// Every translation that was ever made, until the guest or the core flushes it.
    Adversarial,
}

/// How a software CPU works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Its page walks.
    pub paging: PagingKind,
    /// Its TLB.
    pub tlb: TlbKind,
}

impl Options {
    /// Every combination.
    pub const ALL: [Self; 6] = [
        Self { paging: PagingKind::Slots, tlb: TlbKind::Normal },
        Self { paging: PagingKind::Slots, tlb: TlbKind::Adversarial },
        Self { paging: PagingKind::Shadow, tlb: TlbKind::Normal },
        Self { paging: PagingKind::Shadow, tlb: TlbKind::Adversarial },
        Self { paging: PagingKind::Nested, tlb: TlbKind::Normal },
        Self { paging: PagingKind::Nested, tlb: TlbKind::Adversarial },
    ];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match (self.paging, self.tlb) {
            (PagingKind::Slots, TlbKind::Normal) => "soft",
            (PagingKind::Slots, TlbKind::Adversarial) => "soft-adversarial",
            (PagingKind::Shadow, TlbKind::Normal) => "soft-shadow",
            (PagingKind::Shadow, TlbKind::Adversarial) => "soft-shadow-adversarial",
            (PagingKind::Nested, TlbKind::Normal) => "soft-nested",
            (PagingKind::Nested, TlbKind::Adversarial) => "soft-nested-adversarial",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|options| options.name() == name)
    }
}

/// What a user is told beside "software CPU"; nothing about what is as usual.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.paging {
            PagingKind::Slots => {}
            PagingKind::Shadow => f.write_str(", shadow paging")?,
            PagingKind::Nested => f.write_str(", nested paging")?,
        }
        if self.tlb == TlbKind::Adversarial {
            f.write_str(", adversarial TLB")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for options in Options::ALL {
            assert_eq!(Options::named(options.name()), Some(options));
        }
        assert_eq!(Options::named("hard"), None);
    }
}
