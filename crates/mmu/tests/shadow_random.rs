//! Random guests on shadow tables against the walker, and random accesses on nested tables against the slots, with the auditor
//! after each step.
use mmu::testing::{random, random_nested};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 100 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn random_guests_see_what_the_walker_sees(
        data in proptest::collection::vec(any::<u8>(), 1000..if cfg!(miri) { 1200 } else { 6000 })
    ) {
        random::run(&data);
    }

    #[test]
    fn random_accesses_on_nested_tables_reach_what_the_slots_say(
        data in proptest::collection::vec(any::<u8>(), 500..if cfg!(miri) { 600 } else { 3000 })
    ) {
        random_nested::run(&data);
    }
}
