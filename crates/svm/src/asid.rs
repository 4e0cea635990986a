//! Address-space identifiers: each processor hands its own out to the vCPUs that run on it, and starts over, with an empty
//! TLB, when there are no more (APM vol. 2, 15.15).

/// What a vCPU has been given. It counts only on the processor that gave it, and only in the same generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asid {
    generation: u64,
    /// The identifier, 0 if none was given yet.
    pub number: u32,
}

/// The identifiers of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asids {
    generation: u64,
    next: u32,
    max: u32,
}

impl Asids {
    /// Of a processor that knows `count` of them, the host's included. What its TLB holds is not known.
    pub fn new(count: u32) -> Self {
        let max = count.max(2) - 1;
        Self { generation: 1, next: max + 1, max }
    }

    /// Everything is forgotten: the next one starts over with an empty TLB.
    pub fn start_over(&mut self) {
        self.next = self.max + 1;
    }

    /// Whether `asid` was given by this processor and still counts.
    pub fn is_current(&self, asid: Asid) -> bool {
        asid.generation == self.generation && asid.number != 0
    }

    /// An identifier that nothing in the TLB carries. True: the whole TLB has to be flushed with the next VMRUN.
    pub fn give(&mut self) -> (Asid, bool) {
        let flush = self.next > self.max;
        if flush {
            self.generation += 1;
            self.next = 1;
        }
        let asid = Asid { generation: self.generation, number: self.next };
        self.next += 1;
        (asid, flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_given_once_until_they_run_out() {
        let mut asids = Asids::new(4);
        let given: [(Asid, bool); 5] = core::array::from_fn(|_| asids.give());
        assert_eq!(
            given.map(|(asid, flush)| (asid.number, flush)),
            [(1, true), (2, false), (3, false), (1, true), (2, false)]
        );
        for (asid, _) in &given[..3] {
            assert!(!asids.is_current(*asid));
        }
        for (asid, _) in &given[3..] {
            assert!(asids.is_current(*asid));
        }
    }

    #[test]
    fn nothing_counts_before_it_was_given() {
        let mut asids = Asids::new(16);
        assert!(!asids.is_current(Asid::default()));
        let (first, _) = asids.give();
        asids.start_over();
        let (second, flush) = asids.give();
        assert!(flush && !asids.is_current(first) && asids.is_current(second));
    }

    #[test]
    fn a_processor_with_a_single_identifier_flushes_each_time() {
        let mut asids = Asids::new(0);
        assert_eq!([asids.give().1, asids.give().1], [true, true]);
    }
}
