//! Memory slots.
use crate::runner::{Case, case};
use abi::*;

mod client;
mod errors;
mod live;
mod owned;
mod reclaimed;
mod slots;

pub(super) const CASES: &[Case] = &[
    case("create-and-delete", "A15", slots::create_delete),
    case("move", "A15", slots::move_slot),
    case("two-slots-of-the-same-memory", "A15", slots::same_memory),
    case("neighbours-are-one-memory", "A15", slots::neighbours),
    case("many-slots", "A15", slots::many),
    case("read-only", "A15 A07", slots::read_only).needs(KVM_CAP_READONLY_MEM),
    case("read-only-and-read-modify-write", "A15 A07", slots::read_only_rmw).needs(KVM_CAP_READONLY_MEM),
    case("code-in-a-read-only-slot", "A15", slots::read_only_code).needs(KVM_CAP_READONLY_MEM),
    case("alignment-and-sizes", "A15", errors::alignment),
    case("overlaps", "A15", errors::overlaps),
    case("what-a-slot-cannot-become", "A15", errors::changes),
    case("numbers-and-flags", "A15", errors::numbers),
    case("tss-and-identity-map-pages", "A15", errors::intel_pages).needs(KVM_CAP_SET_IDENTITY_MAP_ADDR),
    case("number-of-shadow-pages", "B11", errors::mmu_pages).needs(KVM_CAP_MMU_SHADOW_CACHE_CONTROL),
    case("deleted-while-the-guest-uses-it", "A15 B08", live::delete),
    case("moved-while-the-guest-uses-it", "A15 B08", live::moved),
    case("replaced-again-and-again", "A15 B08", live::replaced),
    case("the-client-sees-what-the-guest-writes", "A15", client::shared),
    case("memory-taken-away-is-EFAULT", "B12", client::taken_away),
    case("memory-write-protected-by-the-client", "B12", client::write_protected),
    case("memory-discarded-by-the-client", "B12", client::discarded),
    case("memory-taken-away-under-a-running-guest", "B12 B08", client::taken_away_live),
    case("paged-out-under-a-running-guest", "B12", reclaimed::paged_out),
    case("merged-with-its-likes-under-a-running-guest", "B12", reclaimed::merged),
    case("owned-memory", "A15", owned::basic).dropped(owned::REASON),
    case("owned-memory-mapped-by-address", "A15", owned::by_address).dropped(owned::REASON),
    case("owned-memory-deleted", "A15", owned::deleted).dropped(owned::REASON),
    case("owned-memory-logged", "A15 A17", owned::logged).dropped(owned::REASON),
    case("owned-memory-and-bad-input", "A15", owned::errors).dropped(owned::REASON),
    case("alias-is-a-window", "A16", owned::alias).dropped(owned::ALIAS),
    case("alias-removed", "A16", owned::alias_removed).dropped(owned::ALIAS),
    case("alias-marks-its-target", "A16 A17", owned::alias_logged).dropped(owned::ALIAS),
    case("alias-and-bad-input", "A16", owned::alias_errors).dropped(owned::ALIAS),
];
