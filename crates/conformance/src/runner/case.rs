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
    /// Linux's real mode without unrestricted guests is not all of real mode.
    Restricted,
}

/// What is done with a case at a place where it cannot pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instead {
    /// It is run and has to fail, so that a reason that is no longer true is noticed.
    Fails(Why),
    /// It is not run: it would take the machine down or hang.
    NotRun(Why),
    /// It is not run: what it shows is not to be had there.
    DoesNotApply,
}

/// A place where a case cannot pass.
#[derive(Clone, Copy, Debug)]
pub struct Except {
    pub(crate) on: Target,
    pub(crate) instead: Instead,
    /// The reason in words.
    pub(crate) reason: &'static str,
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
        self.except(Except { on: Target::LINUX, instead: Instead::Fails(Why::Dropped), reason })
    }

    /// A fault of the emulator below, which its name says: the case is run there and must fail.
    pub const fn fails_below(self, on: Target, reason: &'static str) -> Self {
        self.except(Except { on, instead: Instead::Fails(Why::Below), reason })
    }

    /// Linux does not do this in real mode without unrestricted guests: the case is run there and must fail.
    pub const fn restricted(self, reason: &'static str) -> Self {
        self.except(Except { on: Target::LINUX_RESTRICTED, instead: Instead::Fails(Why::Restricted), reason })
    }

    /// A fault of the emulator below that takes the machine down or hangs it: the case is not run there.
    pub const fn hangs_below(self, on: Target, reason: &'static str) -> Self {
        self.except(Except { on, instead: Instead::NotRun(Why::Below), reason })
    }

    /// Does not apply there, because of what that place is.
    pub const fn inapplicable(self, on: Target, reason: &'static str) -> Self {
        self.except(Except { on, instead: Instead::DoesNotApply, reason })
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
