//! What a processor starts its walk with.

/// The root of the tables that a vCPU walks instead of its guest's, or beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Host-physical address of the root page.
    pub hpa: u64,
    /// 4: four levels, for a guest in long mode and for nested tables. 3: PAE, for every other guest: the first four entries of the root page
    /// are PDPTEs. They may be filled between two stays in the guest, so the processor loads them at each entry.
    pub levels: u8,
}

impl Root {
    /// No tables: the processor translates by other means.
    pub const NONE: Self = Self { hpa: 0, levels: 0 };
}
