//! Tags of translations (AMD's address-space identifiers, APM vol. 2, 15.15; Intel's VPIDs, SDM vol. 3, 29.1): each processor
//! hands its own out to the vCPUs that run on it, and starts over, with an empty TLB, when there are no more.

/// What a vCPU has been given. It counts only on the processor that gave it, and only in the same generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    generation: u64,
    /// The tag, 0 if none was given yet.
    pub number: u32,
}

/// The tags of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    generation: u64,
    next: u32,
    max: u32,
}

impl Tags {
    /// Of a processor that knows `count` of them, the host's included. What its TLB holds is not known.
    pub fn new(count: u32) -> Self {
        let max = count.max(2) - 1;
        Self { generation: 1, next: max + 1, max }
    }

    /// Everything is forgotten: the next one starts over with an empty TLB.
    pub fn start_over(&mut self) {
        self.next = self.max + 1;
    }

    /// Whether `tag` was given by this processor and still counts.
    pub fn is_current(&self, tag: Tag) -> bool {
        tag.generation == self.generation && tag.number != 0
    }

    /// A tag that nothing in the TLB carries. True: the whole TLB has to be flushed before it is used.
    pub fn give(&mut self) -> (Tag, bool) {
        let flush = self.next > self.max;
        if flush {
            self.generation += 1;
            self.next = 1;
        }
        let tag = Tag { generation: self.generation, number: self.next };
        self.next += 1;
        (tag, flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_given_once_until_they_run_out() {
        let mut tags = Tags::new(4);
        let given: [(Tag, bool); 5] = core::array::from_fn(|_| tags.give());
        assert_eq!(
            given.map(|(tag, flush)| (tag.number, flush)),
            [(1, true), (2, false), (3, false), (1, true), (2, false)]
        );
        for (tag, _) in &given[..3] {
            assert!(!tags.is_current(*tag));
        }
        for (tag, _) in &given[3..] {
            assert!(tags.is_current(*tag));
        }
    }

    #[test]
    fn nothing_counts_before_it_was_given() {
        let mut tags = Tags::new(16);
        assert!(!tags.is_current(Tag::default()));
        let (first, _) = tags.give();
        tags.start_over();
        let (second, flush) = tags.give();
        assert!(flush && !tags.is_current(first) && tags.is_current(second));
    }

    #[test]
    fn a_processor_with_a_single_tag_flushes_each_time() {
        let mut tags = Tags::new(0);
        assert_eq!([tags.give().1, tags.give().1], [true, true]);
    }
}
