//! What a case is, and where it does not apply.
use super::Target;
use crate::Device;

/// Why a case is expected to fail or is not run somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Linux has dropped the call.
    Dropped,
    /// A fault of the emulator below that Linux's own KVM shows too.
    Below,
    /// Linux documents or does something else that clients do not rely on.
    Differs,
    /// A defect that is known and open: ours, or one whose cause is not known yet.
    Open,
}

/// A place where a case is expected to fail, or is not run.
#[derive(Clone, Copy, Debug)]
pub struct Except {
    pub(crate) on: Target,
    pub(crate) why: Why,
    /// The reason in words.
    pub(crate) reason: &'static str,
    /// Whether it is run all the same, so that a reason that is no longer true is noticed.
    pub(crate) run: bool,
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name within its folder.
    pub name: &'static str,
    /// The capabilities of the project (`A06 B09`) that it shows.
    pub rows: &'static str,
    pub(crate) needs: [Option<u32>; 4],
    pub(crate) except: [Option<Except>; 3],
    pub(crate) run: fn(&Device),
}

/// A case that applies everywhere.
pub const fn case(name: &'static str, rows: &'static str, run: fn(&Device)) -> Case {
    Case { name, rows, needs: [None; 4], except: [None; 3], run }
}

impl Case {
    /// Skipped, with the capability's name, if the device answers 0 for `cap`.
    pub const fn needs(mut self, cap: u32) -> Self {
        let mut i = 0;
        while self.needs[i].is_some() {
            i += 1;
        }
        self.needs[i] = Some(cap);
        self
    }

    const fn except(mut self, except: Except) -> Self {
        let mut i = 0;
        while self.except[i].is_some() {
            i += 1;
        }
        self.except[i] = Some(except);
        self
    }

    /// Linux has dropped the call: the case is run there and must fail.
    pub const fn dropped(self, reason: &'static str) -> Self {
        self.except(Except { on: Target::LINUX, why: Why::Dropped, reason, run: true })
    }

    /// Linux differs, and why that is not followed: the case is run there and must fail.
    pub const fn linux_differs(self, on: Target, reason: &'static str) -> Self {
        self.except(Except { on, why: Why::Differs, reason, run: true })
    }

    /// A fault of the emulator below, which its name says: the case is run there and must fail.
    pub const fn fails_below(self, on: Target, reason: &'static str) -> Self {
        self.except(Except { on, why: Why::Below, reason, run: true })
    }

    /// Not run there: it would take the machine down or hang.
    pub const fn not_on(self, on: Target, why: Why, reason: &'static str) -> Self {
        self.except(Except { on, why, reason, run: false })
    }

    /// What is to be said about it on `target`.
    pub(crate) fn exception(&self, target: Target) -> Option<&Except> {
        self.except.iter().flatten().find(|except| except.on.contains(target))
    }

    /// All places where it does not apply or is expected to fail, in words.
    pub fn exceptions(&self) -> String {
        let words = self.except.iter().flatten().map(|except| format!("{}: {}", except.on, except.reason));
        words.collect::<Vec<_>>().join("; ")
    }
}
