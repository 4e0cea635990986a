//! The part of a local APIC that others write: requests from other vCPUs, device threads and the client, and the
//! identity that a sender compares destinations with. Everything is atomic; nobody waits.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::message::{DeliveryMode, Message, Trigger};

/// 256 bits, one a vector.
pub(crate) const WORDS: usize = 8;

// `events`
const INIT: u32 = 1 << 0;
const SIPI: u32 = 1 << 1;
const SMI: u32 = 1 << 2;
const EXTINT: u32 = 1 << 3;
const SIPI_VECTOR_SHIFT: u32 = 8;
const SIPI_VECTOR: u32 = 0xff << SIPI_VECTOR_SHIFT;
const NMI_SHIFT: u32 = 16;
const NMI: u32 = 3 << NMI_SHIFT;
/// One NMI can be held while another is being handled; more are merged (SDM vol. 3, 6.7.1).
const NMI_MAX: u32 = 2;

/// What destination matching needs to know of an APIC, readable in one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The full id, which is the vCPU's number.
    pub x2apic_id: u32,
    /// The id register of xAPIC mode.
    pub xapic_id: u8,
    /// Logical id of xAPIC mode (bits 31:24 of the register).
    pub ldr: u8,
    /// Bits 31:28 of the destination format register: 0xf flat, else cluster.
    pub dfr: u8,
    /// IA32_APIC_BASE.EN: an APIC that is off receives nothing.
    pub hardware_enabled: bool,
    /// IA32_APIC_BASE.EXTD.
    pub x2apic: bool,
    /// Spurious-vector register, bit 8: without it fixed interrupts are dropped.
    pub software_enabled: bool,
    /// LINT0 (or the disabled APIC) passes the 8259A's INTR to this processor.
    pub accepts_pic: bool,
}

impl Identity {
    fn pack(self) -> u64 {
        u64::from(self.x2apic_id)
            | u64::from(self.xapic_id) << 32
            | u64::from(self.ldr) << 40
            | u64::from(self.dfr & 0xf) << 48
            | u64::from(self.hardware_enabled) << 52
            | u64::from(self.x2apic) << 53
            | u64::from(self.software_enabled) << 54
            | u64::from(self.accepts_pic) << 55
    }

    fn unpack(v: u64) -> Self {
        Self {
            x2apic_id: v as u32,
            xapic_id: (v >> 32) as u8,
            ldr: (v >> 40) as u8,
            dfr: (v >> 48) as u8 & 0xf,
            hardware_enabled: v & 1 << 52 != 0,
            x2apic: v & 1 << 53 != 0,
            software_enabled: v & 1 << 54 != 0,
            accepts_pic: v & 1 << 55 != 0,
        }
    }

    /// The logical id of x2APIC mode: cluster in bits 31:16, one bit of 15:0 (SDM vol. 3, 11.12.10.2).
    pub fn x2apic_ldr(&self) -> u32 {
        x2apic_ldr(self.x2apic_id)
    }
}

/// Logical id that follows from an x2APIC id.
pub(crate) fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

/// What an APIC did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Nothing: disabled, reserved, or a de-assertion.
    Dropped,
    /// It was pending already.
    Coalesced,
    /// It is newly pending: the vCPU has to look.
    Delivered,
}

/// The shared part of one local APIC. Lives as long as the vCPU; reached by anyone who may interrupt it.
#[derive(Debug)]
pub struct LapicShared {
    irr: [AtomicU32; WORDS],
    tmr: [AtomicU32; WORDS],
    /// One bit a word of `irr` that may be non-zero, so that an entry to the guest costs one load.
    summary: AtomicU32,
    events: AtomicU32,
    /// Errors noticed by senders, for the owner's error status register.
    errors: AtomicU32,
    identity: AtomicU64,
    /// Processor priority as of the owner's last change.
    ppr: AtomicU32,
    /// Lowest-priority interrupts won so far: ties go to who had fewer.
    arbitrations: AtomicU32,
}

impl LapicShared {
    /// The shared part for the vCPU with this APIC id, disabled until its [`crate::lapic::Lapic`] is made.
    pub const fn new(x2apic_id: u32) -> Self {
        Self {
            irr: [const { AtomicU32::new(0) }; WORDS],
            tmr: [const { AtomicU32::new(0) }; WORDS],
            summary: AtomicU32::new(0),
            events: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            identity: AtomicU64::new(x2apic_id as u64),
            ppr: AtomicU32::new(0),
            arbitrations: AtomicU32::new(0),
        }
    }

    /// What matching needs, read at one moment.
    pub fn identity(&self) -> Identity {
        Identity::unpack(self.identity.load(Ordering::Acquire))
    }

    pub(crate) fn set_identity(&self, identity: Identity) {
        self.identity.store(identity.pack(), Ordering::Release);
    }

    /// Processor priority register as last published by the owner (0 to 255).
    pub fn ppr(&self) -> u8 {
        self.ppr.load(Ordering::Relaxed) as u8
    }

    pub(crate) fn set_ppr(&self, ppr: u8) {
        self.ppr.store(u32::from(ppr), Ordering::Relaxed);
    }

    pub(crate) fn arbitrations(&self) -> u32 {
        self.arbitrations.load(Ordering::Relaxed)
    }

    pub(crate) fn won_arbitration(&self) {
        self.arbitrations.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a message that is addressed to this APIC. On [`Accept::Delivered`] the caller kicks the vCPU.
    pub fn accept(&self, message: &Message) -> Accept {
        let identity = self.identity();
        if !identity.hardware_enabled {
            return Accept::Dropped;
        }
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                let deassert = message.trigger == Trigger::Level && !message.assert;
                if deassert || !identity.software_enabled {
                    return Accept::Dropped;
                }
                self.set_vector(message.vector, message.trigger)
            }
            DeliveryMode::Smi => self.set_event(SMI),
            DeliveryMode::Nmi => self.queue_nmi(),
            DeliveryMode::Init => {
                // The level-triggered de-assertion only resynchronised arbitration ids on old processors.
                if message.trigger == Trigger::Level && !message.assert {
                    Accept::Dropped
                } else {
                    self.queue_init();
                    Accept::Delivered
                }
            }
            DeliveryMode::StartUp => {
                self.queue_sipi(message.vector);
                Accept::Delivered
            }
            DeliveryMode::ExtInt => self.set_event(EXTINT),
            DeliveryMode::Reserved => Accept::Dropped,
        }
    }

    /// Requests a vector. Vectors 0 to 15 are illegal and become an error of the receiver.
    pub fn set_vector(&self, vector: u8, trigger: Trigger) -> Accept {
        if vector < 16 {
            self.errors.fetch_or(crate::lapic::ESR_RECEIVE_ILLEGAL_VECTOR, Ordering::SeqCst);
            return Accept::Dropped;
        }
        let (word, bit) = split(vector);
        match trigger {
            Trigger::Edge => self.tmr[word].fetch_and(!bit, Ordering::Relaxed),
            Trigger::Level => self.tmr[word].fetch_or(bit, Ordering::Relaxed),
        };
        // Word before summary, and the owner the other way round: see `clear_vector`.
        let old = self.irr[word].fetch_or(bit, Ordering::SeqCst);
        if old & bit != 0 {
            return Accept::Coalesced;
        }
        self.summary.fetch_or(1 << word, Ordering::SeqCst);
        Accept::Delivered
    }

    /// Takes a vector's request back; only the owner does this.
    pub(crate) fn clear_vector(&self, vector: u8) {
        let (word, bit) = split(vector);
        let old = self.irr[word].fetch_and(!bit, Ordering::SeqCst);
        if old & !bit == 0 {
            self.summary.fetch_and(!(1 << word), Ordering::SeqCst);
            // A request that came between the two is not in the summary any more.
            if self.irr[word].load(Ordering::SeqCst) != 0 {
                self.summary.fetch_or(1 << word, Ordering::SeqCst);
            }
        }
    }

    /// Whether a vector may be requested; false only if none is. Costs one load.
    #[inline]
    pub fn has_requests(&self) -> bool {
        self.summary.load(Ordering::Acquire) != 0
    }

    /// The highest requested vector.
    pub fn highest_request(&self) -> Option<u8> {
        let mut summary = self.summary.load(Ordering::Acquire) & 0xff;
        while summary != 0 {
            let word = summary.ilog2() as usize;
            let bits = self.irr[word].load(Ordering::Acquire);
            if bits != 0 {
                return Some((word as u32 * 32 + bits.ilog2()) as u8);
            }
            summary &= !(1 << word);
        }
        None
    }

    /// One word of the interrupt request register (0 to 7; others read as 0).
    pub fn irr(&self, word: usize) -> u32 {
        self.irr.get(word).map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// One word of the trigger mode register (0 to 7; others read as 0).
    pub fn tmr(&self, word: usize) -> u32 {
        self.tmr.get(word).map_or(0, |w| w.load(Ordering::Acquire))
    }

    pub(crate) fn is_level(&self, vector: u8) -> bool {
        let (word, bit) = split(vector);
        self.tmr(word) & bit != 0
    }

    /// Replaces both registers (restoring, reset). Requests that arrive meanwhile may be lost, as on reset.
    pub(crate) fn restore(&self, irr: &[u32; WORDS], tmr: &[u32; WORDS]) {
        // First, so that a request that comes after its word was replaced is still in the summary at the end: a
        // request that the summary does not know would be merged with for ever and never seen.
        self.summary.store(0, Ordering::SeqCst);
        let mut summary = 0;
        for word in 0..WORDS {
            self.tmr[word].store(tmr[word], Ordering::SeqCst);
            self.irr[word].store(irr[word], Ordering::SeqCst);
            summary |= u32::from(irr[word] != 0) << word;
        }
        self.summary.fetch_or(summary, Ordering::SeqCst);
    }

    /// Notes an error for the owner's error status register.
    pub(crate) fn add_error(&self, bits: u32) {
        self.errors.fetch_or(bits, Ordering::SeqCst);
    }

    pub(crate) fn take_errors(&self) -> u32 {
        self.errors.swap(0, Ordering::SeqCst)
    }

    fn set_event(&self, event: u32) -> Accept {
        let old = self.events.fetch_or(event, Ordering::SeqCst);
        if old & event != 0 { Accept::Coalesced } else { Accept::Delivered }
    }

    fn take_event(&self, event: u32) -> bool {
        // The load keeps the common case, nothing pending, free of locked operations.
        self.events.load(Ordering::Acquire) & event != 0 && self.events.fetch_and(!event, Ordering::SeqCst) & event != 0
    }

    fn update(&self, f: impl Fn(u32) -> u32) -> u32 {
        let mut old = self.events.load(Ordering::Relaxed);
        // Fails only when another thread has made progress.
        while let Err(seen) = self.events.compare_exchange_weak(old, f(old), Ordering::SeqCst, Ordering::Relaxed) {
            old = seen;
        }
        old
    }

    /// Whether any of NMI, INIT, SIPI, SMI, ExtINT is pending.
    #[inline]
    pub fn has_events(&self) -> bool {
        self.events.load(Ordering::Acquire) & !SIPI_VECTOR != 0
    }

    /// Whether INIT or SIPI is pending.
    pub fn has_init_or_sipi(&self) -> bool {
        self.events.load(Ordering::Acquire) & (INIT | SIPI) != 0
    }

    /// Queues an NMI; at most two are held.
    pub fn queue_nmi(&self) -> Accept {
        let old = self.update(|e| {
            let n = (e & NMI) >> NMI_SHIFT;
            e & !NMI | (n + 1).min(NMI_MAX) << NMI_SHIFT
        });
        if (old & NMI) >> NMI_SHIFT >= NMI_MAX { Accept::Coalesced } else { Accept::Delivered }
    }

    /// NMIs queued: 0 to 2.
    pub fn nmi_count(&self) -> u8 {
        ((self.events.load(Ordering::Acquire) & NMI) >> NMI_SHIFT) as u8
    }

    /// Replaces the number of queued NMIs (restoring); more than two are two.
    pub fn set_nmi_count(&self, count: u8) {
        self.update(|e| e & !NMI | u32::from(count).min(NMI_MAX) << NMI_SHIFT);
    }

    /// Forgets all queued NMIs but one: while the handler of an NMI runs, a processor latches no more.
    pub fn latch_one_nmi(&self) {
        if self.nmi_count() > 1 {
            self.update(|e| e & !NMI | ((e & NMI) >> NMI_SHIFT).min(1) << NMI_SHIFT);
        }
    }

    /// Takes one queued NMI.
    pub fn take_nmi(&self) -> bool {
        if self.nmi_count() == 0 {
            return false;
        }
        let old = self.update(|e| {
            let n = (e & NMI) >> NMI_SHIFT;
            e & !NMI | n.saturating_sub(1) << NMI_SHIFT
        });
        old & NMI != 0
    }

    /// Queues an INIT; a start-up that was waiting is forgotten.
    pub fn queue_init(&self) {
        self.update(|e| e & !(SIPI | SIPI_VECTOR) | INIT);
    }

    /// Queues a start-up at page `vector`; a later one replaces it until it is taken.
    pub fn queue_sipi(&self, vector: u8) {
        self.update(|e| e & !SIPI_VECTOR | SIPI | u32::from(vector) << SIPI_VECTOR_SHIFT);
    }

    /// Takes INIT. It comes before a start-up that is pending beside it.
    pub fn take_init(&self) -> bool {
        self.take_event(INIT)
    }

    /// Whether INIT is pending.
    pub fn init_pending(&self) -> bool {
        self.events.load(Ordering::Acquire) & INIT != 0
    }

    /// Takes a start-up: the page number.
    pub fn take_sipi(&self) -> Option<u8> {
        if self.events.load(Ordering::Acquire) & SIPI == 0 {
            return None;
        }
        let old = self.update(|e| e & !SIPI);
        (old & SIPI != 0).then_some((old >> SIPI_VECTOR_SHIFT) as u8)
    }

    /// Page number of the last start-up, for `KVM_GET_VCPU_EVENTS`.
    pub fn sipi_vector(&self) -> u8 {
        (self.events.load(Ordering::Acquire) >> SIPI_VECTOR_SHIFT) as u8
    }

    /// Replaces the page number (restoring).
    pub fn set_sipi_vector(&self, vector: u8) {
        self.update(|e| e & !SIPI_VECTOR | u32::from(vector) << SIPI_VECTOR_SHIFT);
    }

    /// Queues a system management interrupt.
    pub fn queue_smi(&self) -> Accept {
        self.set_event(SMI)
    }

    /// Whether a system management interrupt is pending.
    pub fn smi_pending(&self) -> bool {
        self.events.load(Ordering::Acquire) & SMI != 0
    }

    /// Takes the system management interrupt.
    pub fn take_smi(&self) -> bool {
        self.take_event(SMI)
    }

    /// Takes a request to run an acknowledge cycle with the 8259A. Its INTR line may have fallen since: the cycle
    /// then gives the spurious vector, as on a board.
    pub fn take_extint(&self) -> bool {
        self.take_event(EXTINT)
    }

    /// Whether such a request is pending.
    pub fn extint_pending(&self) -> bool {
        self.events.load(Ordering::Acquire) & EXTINT != 0
    }

    /// Forgets all events but INIT and SIPI (reset).
    pub(crate) fn clear_events(&self) {
        self.update(|e| e & (INIT | SIPI | SIPI_VECTOR));
    }
}

pub(crate) fn split(vector: u8) -> (usize, u32) {
    (usize::from(vector >> 5), 1 << (vector & 31))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn enabled() -> LapicShared {
        let shared = LapicShared::new(3);
        let mut id = shared.identity();
        id.hardware_enabled = true;
        id.software_enabled = true;
        shared.set_identity(id);
        shared
    }

    fn with(mode: DeliveryMode, vector: u8) -> Message {
        Message { delivery_mode: mode, ..Message::fixed(3, vector) }
    }

    #[test]
    fn disabled_apic_takes_nothing_and_software_disabled_one_no_vector() {
        let shared = LapicShared::new(3);
        assert_eq!(shared.accept(&with(DeliveryMode::Nmi, 0)), Accept::Dropped);
        let mut id = shared.identity();
        id.hardware_enabled = true;
        shared.set_identity(id);
        assert_eq!(shared.accept(&with(DeliveryMode::Fixed, 64)), Accept::Dropped);
        assert_eq!(shared.accept(&with(DeliveryMode::Nmi, 0)), Accept::Delivered);
        assert_eq!(shared.accept(&with(DeliveryMode::Init, 0)), Accept::Delivered);
    }

    #[test]
    fn requests_are_ordered_merged_and_cleared() {
        let shared = enabled();
        assert_eq!(shared.highest_request(), None);
        assert_eq!(shared.accept(&with(DeliveryMode::Fixed, 33)), Accept::Delivered);
        assert_eq!(shared.accept(&with(DeliveryMode::Fixed, 200)), Accept::Delivered);
        assert_eq!(shared.accept(&with(DeliveryMode::Fixed, 200)), Accept::Coalesced);
        assert_eq!(shared.highest_request(), Some(200));
        shared.clear_vector(200);
        assert_eq!(shared.highest_request(), Some(33));
        shared.clear_vector(33);
        assert_eq!(shared.highest_request(), None);
    }

    #[test]
    fn illegal_vector_is_the_receivers_error() {
        let shared = enabled();
        assert_eq!(shared.accept(&with(DeliveryMode::Fixed, 15)), Accept::Dropped);
        assert_eq!(shared.take_errors(), crate::lapic::ESR_RECEIVE_ILLEGAL_VECTOR);
    }

    #[test]
    fn trigger_mode_follows_the_last_request() {
        let shared = enabled();
        shared.set_vector(50, Trigger::Level);
        assert!(shared.is_level(50));
        shared.set_vector(50, Trigger::Edge);
        assert!(!shared.is_level(50));
    }

    #[test]
    fn nmis_saturate_at_two() {
        let shared = enabled();
        let got: std::vec::Vec<_> = (0..4).map(|_| shared.queue_nmi()).collect();
        assert_eq!(got, [Accept::Delivered, Accept::Delivered, Accept::Coalesced, Accept::Coalesced]);
        assert!(shared.take_nmi() && shared.take_nmi() && !shared.take_nmi());
        shared.set_nmi_count(200);
        assert_eq!(shared.nmi_count(), 2);
        shared.latch_one_nmi();
        assert_eq!(shared.nmi_count(), 1);
        shared.latch_one_nmi();
        assert!(shared.take_nmi() && !shared.take_nmi());
    }

    #[test]
    fn init_forgets_an_earlier_sipi_and_keeps_a_later_one() {
        let shared = enabled();
        shared.queue_sipi(0x10);
        shared.queue_init();
        assert_eq!(shared.take_sipi(), None);
        shared.queue_sipi(0x99);
        assert!(shared.take_init());
        assert!(!shared.take_init());
        assert_eq!(shared.take_sipi(), Some(0x99));
        assert_eq!(shared.take_sipi(), None);
        assert!(!shared.has_events());
    }

    /// Waits for what comes at once unless a request was lost; false if it does not come for seconds.
    fn comes(mut arrived: impl FnMut() -> bool) -> bool {
        let mut start = None;
        for turn in 1u32.. {
            if arrived() {
                return true;
            }
            if turn % 64 == 0 {
                let start = *start.get_or_insert_with(std::time::Instant::now);
                if start.elapsed() > std::time::Duration::from_secs(5) {
                    break;
                }
                std::thread::yield_now();
            }
        }
        false
    }

    #[test]
    fn no_request_is_lost_between_threads() {
        const REQUESTS: u32 = 2_000;
        let shared = enabled();
        std::thread::scope(|s| {
            let sender = s.spawn(|| {
                let send = || shared.set_vector(40, Trigger::Edge) == Accept::Delivered;
                (0..REQUESTS).all(|_| comes(send))
            });
            for n in 0..REQUESTS {
                assert!(comes(|| shared.highest_request() == Some(40)), "request {n} was lost");
                shared.clear_vector(40);
            }
            assert!(sender.join().unwrap());
        });
        assert_eq!(shared.highest_request(), None);
    }

    #[test]
    fn a_reset_leaves_no_request_that_cannot_be_seen() {
        let shared = enabled();
        let done = core::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    shared.set_vector(250, Trigger::Edge);
                }
            });
            let lost = (0..2_000).any(|_| {
                shared.restore(&[0; WORDS], &[0; WORDS]);
                !comes(|| shared.highest_request().is_some())
            });
            done.store(true, Ordering::Relaxed);
            assert!(!lost);
        });
    }

    #[test]
    fn deassertion_of_a_level_requests_nothing() {
        let shared = enabled();
        for mode in [DeliveryMode::Fixed, DeliveryMode::Init] {
            let message = Message { trigger: Trigger::Level, assert: false, ..with(mode, 0x40) };
            assert_eq!(shared.accept(&message), Accept::Dropped);
        }
        assert_eq!(shared.highest_request(), None);
        assert!(!shared.has_events());
    }

    proptest! {
        #[test]
        fn identity_round_trips(v in 0u64..1 << 56) {
            prop_assert_eq!(Identity::unpack(v).pack(), v);
        }

        #[test]
        fn highest_is_the_maximum(vectors in proptest::collection::vec(16u8.., 0..40)) {
            let shared = enabled();
            for &v in &vectors { shared.set_vector(v, Trigger::Edge); }
            let mut sorted: std::collections::BTreeSet<u8> = vectors.into_iter().collect();
            while let Some(v) = sorted.pop_last() {
                prop_assert_eq!(shared.highest_request(), Some(v));
                shared.clear_vector(v);
            }
            prop_assert_eq!(shared.highest_request(), None);
        }
    }
}
