//! The fast loop: blocks of decoded instructions, one after the other.
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use emulate::{Op, Stop};
use hv::backend::Exit;
use platform::Platform;
use x86::Shadow;

use crate::{
    SoftVcpu,
    build::Found,
    cache::{After, Block},
};

impl<P: Platform> SoftVcpu<P> {
    /// Runs blocks until one ends with more than a jump, something stops an instruction, or somebody wants
    /// attention. None: look at everything, then go on.
    #[inline(never)]
    pub(crate) fn fast(&mut self, requests: &AtomicU32) -> Option<Exit> {
        let mut last: Option<NonNull<Block<Self>>> = None;
        loop {
            if requests.load(Relaxed) != 0
                || self.common.code.epoch() != self.epoch
                || self.stats.instructions >= self.compare_at
            {
                return None;
            }
            let linear = self.state.linear_rip();
            let key = self.jump_keys[(linear >> 63) as usize];
            // SAFETY: `last` ran just now, and no block was made since, so that the cache was not cleared.
            let linked = last.and_then(|last| unsafe { last.as_ref() }.successor(linear, key));
            let block = match linked {
                Some(block) => block,
                None => match self.cache.jump(linear, key) {
                    Some(block) => {
                        if let Some(mut last) = last {
                            // SAFETY: as above, and no other reference to a block exists.
                            unsafe { last.as_mut() }.link(linear, key, block);
                        }
                        block
                    }
                    None => match self.look_up(linear) {
                        Ok(Found::Block(block)) => block,
                        Ok(Found::Single) => return self.single(),
                        Err(stop) => return self.stopped(stop, None),
                    },
                },
            };
            let (first, size, count, after) = {
                // SAFETY: blocks that are found are in the cache, which only `look_up` changes.
                let block = unsafe { block.as_ref() };
                (block.ops.as_ptr().cast_const(), block.size as usize, block.count, block.after)
            };
            if let Some(stopped) = self.run_ops(first, size, requests) {
                return stopped;
            }
            self.stats.instructions += count as u64;
            if self.end == 0 || after != After::Nothing && (after == After::Everything || self.follow_flags()) {
                return None;
            }
            last = Some(block);
        }
    }

    /// Executes the `size` bytes of `Op`s at `first`. Some: what `fast` is to return.
    #[inline(always)]
    fn run_ops(&mut self, first: *const Op<Self>, size: usize, requests: &AtomicU32) -> Option<Option<Exit>> {
        let shadow = core::mem::replace(&mut self.state.shadow, Shadow::None);
        self.end = first.addr() + size;
        let mut op = first;
        let mut rip = self.state.rip;
        loop {
            // SAFETY: `op` is one of the block's instructions: `end` is never more than their end, and their memory is
            // written only when a block is made, which no instruction does.
            let this = unsafe { &*op };
            let next = rip.wrapping_add(this.len as u64);
            self.state.rip = next;
            if let Err(stop) = (this.run)(self, this) {
                self.state.rip = rip;
                if stop == Stop::RESTART && self.end != 0 && requests.load(Relaxed) == 0 {
                    continue;
                }
                if op == first {
                    self.state.shadow = shadow;
                }
                self.stats.instructions += ((op.addr() - first.addr()) / size_of::<Op<Self>>()) as u64;
                return Some(self.stopped(stop, Some(this)));
            }
            rip = next;
            op = op.wrapping_add(1);
            if op.addr() >= self.end {
                return None;
            }
        }
    }
}
