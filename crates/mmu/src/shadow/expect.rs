//! What a shadow entry has to be, from the guest's entry alone. The same function makes entries in a fault, looks whether they
//! still hold after a write to the guest's table, and tells the auditor what is right.
use x86::paging as bits;

use super::{
    role::{Access, Format, Role},
    spte::Leaf,
};

/// What a guest entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// No translation may be cached: not present, not accessed yet, or not valid.
    Nothing,
    /// The shadow page of a guest table, or of a part of a large page. `gfn` is as the guest has it, aliases included.
    Child { gfn: u64, role: Role },
    /// A 4 KiB page.
    Page { gfn: u64, access: Access },
}

/// Bits 62:52, which PAE reserves and long mode ignores.
const HIGH: u64 = 0x7ff0_0000_0000_0000;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What entry `index` of a page with `role` has to be, if the guest's entry is `gpte`. `role` is not direct.
pub(super) fn expected(role: &Role, index: usize, gpte: u64) -> Expected {
    if gpte & (bits::P | bits::A) != bits::P | bits::A {
        return Expected::Nothing;
    }
    let narrow = matches!(role.format, Format::Bits32 { .. });
    if !narrow && (gpte & bits::NX != 0 && !role.nx || role.format == Format::Pae && gpte & HIGH != 0) {
        return Expected::Nothing;
    }
    let large = role.level > 1
        && gpte & bits::PS != 0
        && match role.format {
            Format::Bits32 { pse } => pse,
            Format::Long { gigabyte, .. } if role.level == 3 => gigabyte,
            _ => role.level == 2,
        };
    let mut access = role.access
        & Access::EXECUTE
            .with(Access::WRITE, gpte & bits::W != 0)
            .with(Access::USER, gpte & bits::U != 0)
            .with(Access::EXECUTE, narrow || gpte & bits::NX == 0);
    if role.level > 1 && !large {
        let reserved = match role.format {
            Format::Long { global_reserved, .. } if role.level > 2 => {
                bits::PS | if global_reserved { bits::G } else { 0 }
            }
            _ => 0,
        };
        if gpte & reserved != 0 {
            return Expected::Nothing;
        }
        let gfn = (gpte & FRAME) >> bits::PAGE_SHIFT;
        return Expected::Child { gfn, role: role.table_below(index, access) };
    }
    // Until the guest's dirty bit is set, writes have to come here.
    let dirty = gpte & bits::D != 0;
    access = access.with(Access::WRITE, access.has(Access::WRITE) && dirty);
    let user = access.has(Access::USER);
    access = access.with(Access::SUPERVISOR_WRITE, !role.wp && dirty && !(role.smap && user));
    if role.level == 1 {
        return Expected::Page { gfn: (gpte & FRAME) >> bits::PAGE_SHIFT, access };
    }
    let Some(base) = large_base(role, index, gpte) else { return Expected::Nothing };
    Expected::Child { gfn: base >> bits::PAGE_SHIFT, role: role.direct_below(access) }
}

/// The first guest-physical address that shadow entry `index` has to map of a large page.
fn large_base(role: &Role, index: usize, gpte: u64) -> Option<u64> {
    if matches!(role.format, Format::Bits32 { .. }) {
        // Bits 20:13 are address bits 39:32 (PSE-36), bit 21 is reserved; each entry here maps half of the page.
        let high = (gpte >> 13 & 0xff) << 32;
        let base = gpte & 0xffc0_0000 | high | (index as u64 & 1) << 21;
        return (gpte & 1 << 21 == 0).then_some(base);
    }
    let offset = (1u64 << (12 + 9 * (role.level - 1))) - 1;
    let address = gpte & FRAME;
    // Bit 12 is PAT.
    (address & offset & !0x1000 == 0).then_some(address & !offset)
}

/// What a leaf may be made to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What everybody is allowed.
    Plain,
    /// With CR0.WP clear, for the supervisor that writes a read-only user page: a page of the supervisor's, until user
    /// mode touches it.
    Supervisor,
}

/// A leaf for a page with these rights, at `hpa`. `writable`: nothing but the guest's rights stands against writes.
pub(super) fn leaf(role: &Role, access: Access, kind: Kind, hpa: u64, writable: bool) -> Leaf {
    let user = access.has(Access::USER);
    let supervisor = access.has(Access::SUPERVISOR_WRITE);
    let execute = access.has(Access::EXECUTE);
    let write = access.has(Access::WRITE);
    if kind == Kind::Supervisor && writable && user && supervisor && !write {
        return Leaf { hpa, write: true, user: false, execute: execute && !role.smep, large: false };
    }
    Leaf { hpa, write: writable && (write || supervisor && !user), user, execute, large: false }
}

/// Whether a leaf is one that could be made for a page with these rights, or what was left of it when the right to write was
/// taken away.
pub(super) fn leaf_holds(role: &Role, access: Access, spte: Leaf) -> bool {
    let same = |kind, spte: Leaf| leaf(role, access, kind, spte.hpa, true) == spte;
    let plain = leaf(role, access, Kind::Plain, spte.hpa, false) == spte;
    plain
        || [Kind::Plain, Kind::Supervisor]
            .iter()
            .any(|&kind| same(kind, spte) || same(kind, Leaf { write: true, ..spte }))
}
