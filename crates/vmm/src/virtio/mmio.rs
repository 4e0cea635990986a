//! The memory-mapped transport (virtio 1.2, 4.2), version 2, for devices with
//! one queue.
//!
//! Registers are answered on the vCPU's thread. Requests are carried out by a
//! worker thread of the device, so that a slow disk does not stop a processor.
//! Registers, queue and interrupt have a lock each; a thread holds one at a
//! time, except that a register access may take the queue's or interrupt's.

use crate::bus::BusDevice;
use crate::devices::{IrqLine, lock};
use crate::memory::GuestRam;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// "rkvm", little endian.
const VENDOR: u32 = 0x6d76_6b72;

/// A kind of device behind the transport.
pub trait VirtioDevice: Send + 'static {
    /// The device's number in the specification.
    fn id(&self) -> u32;
    /// Feature bits beyond those of the transport and its queue.
    fn features(&self) -> u64;
    /// The configuration space.
    fn config(&self) -> Vec<u8>;
    /// Most descriptors in the queue, a power of two.
    fn queue_size(&self) -> u16;
    /// Carries out one request; answers how many bytes it wrote to guest memory.
    fn process(&mut self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> u32;
}

/// What the driver has set up so far.
#[derive(Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queue_num: u32,
    desc: u64,
    avail: u64,
    used: u64,
}

/// The device and the queue once it is ready.
struct Engine<D> {
    device: D,
    queue: Option<Queue>,
}

/// The interrupt status register and the line it drives.
struct Interrupt {
    status: Mutex<u32>,
    line: Arc<dyn IrqLine>,
}

impl Interrupt {
    fn raise(&self, bits: u32) {
        let mut status = lock(&self.status);
        let before = *status;
        *status |= bits;
        if before == 0 {
            self.line.set(true);
        }
    }

    fn acknowledge(&self, bits: u32) {
        let mut status = lock(&self.status);
        let before = *status;
        *status &= !bits;
        if before != 0 && *status == 0 {
            self.line.set(false);
        }
    }
}

struct Shared<D> {
    ram: Arc<GuestRam>,
    registers: Mutex<Registers>,
    engine: Mutex<Engine<D>>,
    interrupt: Interrupt,
    notified: Mutex<bool>,
    work: Condvar,
    stop: AtomicBool,
}

/// A device at an address.
pub struct VirtioMmio<D> {
    shared: Arc<Shared<D>>,
    id: u32,
    features: u64,
    config: Vec<u8>,
    queue_size: u16,
    worker: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// Puts `device` behind a transport and starts its worker thread.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn new(device: D, ram: Arc<GuestRam>, line: Arc<dyn IrqLine>) -> std::io::Result<Self> {
        let features = device.features() | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
        let (id, config, queue_size) = (device.id(), device.config(), device.queue_size());
        let shared = Arc::new(Shared {
            ram,
            registers: Mutex::default(),
            engine: Mutex::new(Engine { device, queue: None }),
            interrupt: Interrupt { status: Mutex::new(0), line },
            notified: Mutex::new(false),
            work: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let worker = std::thread::Builder::new().name(format!("virtio-{id}")).spawn({
            let shared = shared.clone();
            move || shared.work()
        })?;
        Ok(Self { shared, id, features, config, queue_size, worker: Mutex::new(Some(worker)) })
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = lock(&self.shared.registers);
        let first_queue = registers.queue_sel == 0;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => 2,
            VIRTIO_MMIO_DEVICE_ID => self.id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, registers.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX if first_queue => u32::from(self.queue_size),
            VIRTIO_MMIO_QUEUE_READY if first_queue => u32::from(lock(&self.shared.engine).queue.is_some()),
            VIRTIO_MMIO_INTERRUPT_STATUS => *lock(&self.shared.interrupt.status),
            VIRTIO_MMIO_STATUS => registers.status,
            // There is no shared memory region: its length reads as -1.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            // The configuration never changes, its generation is always 0.
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let shared = &*self.shared;
        let mut registers = lock(&shared.registers);
        let negotiating = registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0;
        let first_queue = registers.queue_sel == 0;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if negotiating => {
                let select = registers.driver_features_sel;
                set_half(&mut registers.driver_features, select, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM if first_queue => registers.queue_num = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW if first_queue => set_half(&mut registers.desc, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH if first_queue => set_half(&mut registers.desc, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW if first_queue => set_half(&mut registers.avail, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH if first_queue => set_half(&mut registers.avail, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW if first_queue => set_half(&mut registers.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH if first_queue => set_half(&mut registers.used, 1, value),
            VIRTIO_MMIO_QUEUE_READY if first_queue && !negotiating => {
                let queue = (value & 1 == 1).then(|| self.queue(&registers)).flatten();
                lock(&shared.engine).queue = queue;
            }
            VIRTIO_MMIO_QUEUE_NOTIFY if value == 0 && registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 => {
                drop(registers);
                shared.notify();
            }
            VIRTIO_MMIO_INTERRUPT_ACK => shared.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS if value == 0 => {
                // Reset. Taking the queue away waits for a request being carried out.
                *registers = Registers::default();
                lock(&shared.engine).queue = None;
                shared.interrupt.acknowledge(u32::MAX);
            }
            VIRTIO_MMIO_STATUS => {
                let mut status = value & 0xff | registers.status & VIRTIO_CONFIG_S_NEEDS_RESET;
                let offered = registers.driver_features & !self.features == 0;
                let modern = registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
                if negotiating && !(offered && modern) {
                    status &= !VIRTIO_CONFIG_S_FEATURES_OK;
                }
                registers.status = status;
                if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                    // Requests may have been queued before.
                    drop(registers);
                    shared.notify();
                }
            }
            _ => {}
        }
    }

    /// The queue that the driver describes, if it lies in guest memory.
    fn queue(&self, registers: &Registers) -> Option<Queue> {
        let mut queue = Queue::new(self.queue_size).ok()?;
        queue.try_set_size(u16::try_from(registers.queue_num).ok()?).ok()?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(registers.desc)).ok()?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(registers.avail)).ok()?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(registers.used)).ok()?;
        queue.set_event_idx(registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        queue.is_valid(&*self.shared.ram).then_some(queue)
    }
}

impl<D: VirtioDevice> Shared<D> {
    fn notify(&self) {
        *lock(&self.notified) = true;
        self.work.notify_one();
    }

    /// The worker's life.
    fn work(&self) {
        loop {
            let mut notified = lock(&self.notified);
            while !*notified {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                notified = self.work.wait(notified).unwrap_or_else(|p| p.into_inner());
            }
            *notified = false;
            drop(notified);
            // One request for each hold of the lock: a driver that keeps adding requests
            // cannot keep a reset, or the machine's end, waiting.
            loop {
                if self.stop.load(Ordering::SeqCst) || !self.step() {
                    break;
                }
            }
        }
    }

    /// Carries out one request; false when there is none.
    fn step(&self) -> bool {
        let mut engine = lock(&self.engine);
        let Engine { device, queue: Some(queue) } = &mut *engine else { return false };
        match step(device, queue, &self.ram) {
            Ok(step) => {
                if step.interrupt {
                    self.interrupt.raise(VIRTIO_MMIO_INT_VRING);
                }
                step.more
            }
            Err(_) => {
                // The queue makes no sense. The driver is told and has to reset.
                engine.queue = None;
                drop(engine);
                lock(&self.registers).status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                self.interrupt.raise(VIRTIO_MMIO_INT_CONFIG);
                false
            }
        }
    }
}

/// What became of a look at the queue.
struct Step {
    /// There may be more.
    more: bool,
    /// The driver wants to hear of it.
    interrupt: bool,
}

fn step<D: VirtioDevice>(device: &mut D, queue: &mut Queue, ram: &GuestRam) -> Result<Step, virtio_queue::Error> {
    let Some(chain) = queue.iter(ram)?.next() else {
        // Ask to be notified again; true if something came in between.
        return Ok(Step { more: queue.enable_notification(ram)?, interrupt: false });
    };
    let head = chain.head_index();
    let written = device.process(ram, chain);
    queue.add_used(ram, head, written)?;
    Ok(Step { more: true, interrupt: queue.needs_notification(ram)? })
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, select: u32, value: u32) {
    match select {
        0 => *target = *target & !0xffff_ffff | u64::from(value),
        1 => *target = *target & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

impl<D: VirtioDevice> BusDevice for VirtioMmio<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if offset >= config {
            // The configuration can be read in any unit.
            let at = ((offset - config) as usize).min(self.config.len());
            data.fill(0);
            for (to, from) in data.iter_mut().zip(&self.config[at..]) {
                *to = *from;
            }
        } else if let (4, true) = (data.len(), offset.is_multiple_of(4)) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Registers take aligned 32-bit accesses only; the configuration is read-only.
        if let (Ok(value), true) = (data.try_into(), offset.is_multiple_of(4))
            && offset < u64::from(VIRTIO_MMIO_CONFIG)
        {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}

impl<D> Drop for VirtioMmio<D> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Under the lock, so that the worker is not between its test and its wait.
        drop(lock(&self.shared.notified));
        self.shared.work.notify_one();
        if let Some(worker) = lock(&self.worker).take() {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    /// Writes 0x5a to each writable byte.
    struct Fill;

    impl VirtioDevice for Fill {
        fn id(&self) -> u32 {
            42
        }
        fn features(&self) -> u64 {
            1 << 5
        }
        fn config(&self) -> Vec<u8> {
            vec![1, 2, 3]
        }
        fn queue_size(&self) -> u16 {
            16
        }
        fn process(&mut self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> u32 {
            let mut written = 0;
            for d in chain.writable() {
                if ram.write_slice(&vec![0x5a; d.len() as usize], d.addr()).is_ok() {
                    written += d.len();
                }
            }
            written
        }
    }

    #[derive(Default)]
    struct Line(AtomicU32, AtomicBool);

    impl IrqLine for Line {
        fn set(&self, level: bool) {
            self.0.fetch_add(u32::from(level), Ordering::SeqCst);
            self.1.store(level, Ordering::SeqCst);
        }
    }

    fn device() -> (Arc<GuestRam>, Arc<Line>, VirtioMmio<Fill>) {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let line = Arc::new(Line::default());
        let device = VirtioMmio::new(Fill, ram.clone(), line.clone()).unwrap();
        (ram, line, device)
    }

    fn get(device: &VirtioMmio<Fill>, offset: u32) -> u32 {
        let mut data = [0xff; 4];
        device.read(u64::from(offset), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(device: &VirtioMmio<Fill>, offset: u32, value: u32) {
        device.write(u64::from(offset), &value.to_le_bytes());
    }

    /// The driver's part of the initialisation (virtio 1.2, 3.1).
    fn start(device: &VirtioMmio<Fill>, queue: [u64; 3], size: u32) {
        set(device, VIRTIO_MMIO_STATUS, 0);
        set(device, VIRTIO_MMIO_STATUS, 3);
        set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        set(device, VIRTIO_MMIO_DRIVER_FEATURES, 1);
        set(device, VIRTIO_MMIO_STATUS, 11);
        assert_eq!(get(device, VIRTIO_MMIO_STATUS), 11);
        set(device, VIRTIO_MMIO_QUEUE_NUM, size);
        for (register, address) in
            [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW].into_iter().zip(queue)
        {
            set(device, register, address as u32);
            set(device, register + 4, (address >> 32) as u32);
        }
        set(device, VIRTIO_MMIO_QUEUE_READY, 1);
        set(device, VIRTIO_MMIO_STATUS, 15);
    }

    fn wait(mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn mock<'a>(ram: &'a GuestRam) -> (MockSplitQueue<'a, GuestRam>, [u64; 3]) {
        let mock = MockSplitQueue::new(ram, 16);
        let addresses = [mock.desc_table_addr().0, mock.avail_addr().0, mock.used_addr().0];
        (mock, addresses)
    }

    #[test]
    fn a_request_is_carried_out_and_told() {
        let (ram, line, device) = device();
        let (mock, addresses) = mock(&ram);
        let descriptor = Descriptor::new(0x8000, 8, VRING_DESC_F_WRITE as u16, 0);
        mock.build_multiple_desc_chains(&[RawDescriptor::from(descriptor)]).unwrap();
        start(&device, addresses, 16);
        assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_READY), 1);
        set(&device, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        wait(|| line.1.load(Ordering::SeqCst));
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x8000)).unwrap(), 0x5a5a_5a5a_5a5a_5a5a);
        assert_eq!(u16::from_le(mock.used().idx().load()), 1);
        assert_eq!(get(&device, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        set(&device, VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert!(!line.1.load(Ordering::SeqCst));
    }

    #[test]
    fn features_that_were_not_offered_are_not_accepted() {
        let (_, _, device) = device();
        set(&device, VIRTIO_MMIO_STATUS, 3);
        set(&device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        set(&device, VIRTIO_MMIO_DRIVER_FEATURES, 0x101);
        set(&device, VIRTIO_MMIO_STATUS, 11);
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS), 3);
        set(&device, VIRTIO_MMIO_DRIVER_FEATURES, 0);
        set(&device, VIRTIO_MMIO_STATUS, 11);
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS), 3, "legacy drivers are refused");
    }

    #[test]
    fn a_queue_outside_of_memory_does_not_become_ready() {
        let (_, _, device) = device();
        for queue in [[0x10_0000, 0, 0x1000], [0xfff0, 0, 0x1000], [!15, 0, 0], [0, !1, 0], [8, 0, 0]] {
            start(&device, queue, 16);
            assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_READY), 0, "{queue:x?}");
        }
        for size in [0, 3, 32, 0x1_0000, u32::MAX] {
            start(&device, [0, 0x1000, 0x2000], size);
            assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_READY), 0, "{size}");
        }
    }

    #[test]
    fn a_senseless_ring_asks_for_a_reset_and_gets_over_it() {
        let (ram, line, device) = device();
        let (mock, addresses) = mock(&ram);
        mock.avail().idx().store(u16::to_le(1000));
        start(&device, addresses, 16);
        wait(|| line.1.load(Ordering::SeqCst));
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 64);
        assert_eq!(get(&device, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        set(&device, VIRTIO_MMIO_STATUS, 0);
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS), 0);
        assert!(!line.1.load(Ordering::SeqCst));
        mock.avail().idx().store(0);
        start(&device, addresses, 16);
        assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_READY), 1);
    }

    #[test]
    fn other_queues_and_odd_accesses_do_nothing() {
        let (_, _, device) = device();
        assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_NUM_MAX), 16);
        set(&device, VIRTIO_MMIO_QUEUE_SEL, 1);
        assert_eq!(get(&device, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        device.write(u64::from(VIRTIO_MMIO_STATUS), &[3]);
        device.write(u64::from(VIRTIO_MMIO_STATUS) + 1, &[3; 4]);
        device.write(0xffd, &[3; 4]);
        assert_eq!(get(&device, VIRTIO_MMIO_STATUS), 0);
        let mut data = [0xff; 8];
        device.read(u64::from(VIRTIO_MMIO_CONFIG) + 1, &mut data);
        assert_eq!(data, [2, 3, 0, 0, 0, 0, 0, 0]);
        device.read(0xfff, &mut data);
        assert_eq!(data, [0; 8]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn any_register_writes_leave_the_device_usable(
            writes in proptest::collection::vec((0u32..0x48, proptest::num::u32::ANY), 1..60),
        ) {
            let (ram, line, device) = device();
            for (register, value) in writes {
                set(&device, register * 4, value);
                get(&device, register * 4);
            }
            let (mock, addresses) = mock(&ram);
            mock.avail().idx().store(0);
            let descriptor = Descriptor::new(0x8000, 8, VRING_DESC_F_WRITE as u16, 0);
            mock.build_multiple_desc_chains(&[RawDescriptor::from(descriptor)]).unwrap();
            set(&device, VIRTIO_MMIO_QUEUE_SEL, 0);
            start(&device, addresses, 16);
            set(&device, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            wait(|| line.1.load(Ordering::SeqCst));
        }
    }
}
