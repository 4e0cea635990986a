//! The processor as the emulator sees it when the hypervisor executes an instruction: a vCPU's registers, guest
//! memory by way of the slots, and the device buses.
use emulate::{Access, Cpu, Flush, Intercept, Op, Res, Stop};
use mmu::{MemoryError, Paging, PhysMem, Request, WalkError, walk};
use platform::{EventFd, Platform, Shared, Word};
use x86::{CpuState, Exception, Features, Vector, exception::pf, flags, paging::PAGE_SIZE};

use super::{DeviceAccess, Transaction};
use crate::{
    backend::{Backend, BackendVcpu, FlushTlb, Groups, VectorUnit},
    stats::Counter,
    vcpu::{Inner, LocalApic, RunPage, Tsc, VcpuShared, reread_pdptes},
    vm::{Space, VmShared},
};

/// Why the emulator stopped with [`Stop::EXIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The client has to carry out a device access.
    Device,
    /// Memory of the client is gone.
    BadAddress,
    /// An instruction that the run loop handles as if the processor had exited for it.
    Intercept(Intercept),
    /// Others kept changing what it needs; nothing of it has happened, except to the devices in the log.
    Again,
    /// Nothing here can execute it.
    Unsupported,
}

/// What an instruction leaves to whoever has it executed.
#[derive(Default)]
pub(super) struct Notes {
    /// The guest has made the processor forget translations.
    pub(super) flush: bool,
    /// What is derived from mode and privilege became stale in the back end.
    pub(super) rights: bool,
    /// Why it stopped with [`Stop::EXIT`].
    pub(super) why: Option<Why>,
    /// An exception behind it.
    pub(super) after: Option<Exception>,
    /// NMIs are no longer blocked.
    pub(super) unblock_nmi: bool,
    /// The local APIC's task priority register was read, or written.
    pub(super) tpr: Option<bool>,
    /// A locked operation did not find what it expected.
    pub(super) lost_race: bool,
}

impl Notes {
    /// Makes the back end forget what became stale.
    pub(super) fn carry_out_flush<B: Backend>(&self, inner: &mut Inner<B>) {
        if self.flush {
            inner.flush_guest();
        } else if self.rights {
            inner.cpu.flush(FlushTlb::All);
        }
    }
}

/// The read half of a read-modify-write that a device has answered, at least in part.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Loaded {
    linear: u64,
    bytes: u64,
    value: [u64; 2],
}

impl Loaded {
    fn new<T: Word>(linear: u64, value: T) -> Self {
        Self { linear, bytes: T::BYTES, value: [value.low(), value.high()] }
    }
}

/// A vCPU for the length of one instruction.
pub(crate) struct Guest<'a, P: Platform, V> {
    pub(super) state: &'a mut CpuState,
    pub(super) vm: &'a VmShared<P>,
    shared: &'a VcpuShared<P>,
    pub(super) reader: usize,
    /// In system management mode, with its memory.
    smm: bool,
    features: Features,
    physical_bits: u32,
    xcr0: u64,
    apic: Option<&'a mut LocalApic<P>>,
    tsc: &'a Tsc,
    pub(super) tx: &'a mut Transaction,
    /// The pages shared with the client.
    pub(super) page: RunPage<P>,
    paging: Option<Paging>,
    rereads_pdptes: bool,
    pub(super) payload: u64,
    pub(super) notes: Notes,
    loaded: Option<Loaded>,
    vectors: Option<&'a mut V>,
}

/// Offset of the task priority register in the local APIC's page.
const TPR: u64 = 0x80;

/// A run of bytes in one page.
#[derive(Clone, Copy)]
struct Piece {
    gpa: u64,
    len: usize,
}

impl<'a, P: Platform, V> Guest<'a, P, V> {
    /// vCPU number `reader`, whose parts are borrowed one by one. Of its registers those in `groups` may be changed; the
    /// others are as the last look at them found them.
    pub(super) fn new<B>(
        inner: &'a mut Inner<B>,
        groups: Groups,
        vm: &'a VmShared<P>,
        shared: &'a VcpuShared<P>,
        reader: usize,
        page: RunPage<P>,
    ) -> Self
    where
        B: Backend<Platform = P>,
        B::Vcpu: BackendVcpu<P, Vectors = V>,
    {
        let rereads_pdptes = inner.rereads_pdptes();
        let (state, vectors) = inner.cpu.registers_and_vectors(groups);
        Self {
            state,
            vm,
            shared,
            reader,
            smm: inner.smm.inside,
            features: inner.features,
            physical_bits: inner.physical_bits,
            xcr0: inner.xcr0,
            apic: inner.apic.as_mut(),
            tsc: &inner.tsc,
            tx: &mut inner.tx,
            page,
            paging: None,
            rereads_pdptes,
            payload: 0,
            notes: Notes::default(),
            loaded: None,
            vectors,
        }
    }

    pub(super) fn stop(&mut self, why: Why) -> Stop {
        self.notes.why = Some(why);
        Stop::EXIT
    }

    pub(super) fn request(&self, base: Request, access: Access) -> Request {
        let user = match access {
            Access::Program => self.state.cpl == 3,
            Access::User => true,
            Access::System => false,
        };
        if user {
            base.user()
        } else if access == Access::Program && self.state.flags.control(flags::AC) {
            base.lift_smap()
        } else {
            base
        }
    }

    /// Walks the guest's tables: the guest-physical address of `linear`.
    pub(super) fn translate(&mut self, linear: u64, request: Request) -> Res<u64> {
        let Some(view) = self.vm.space(self.smm).view(self.reader) else { return Err(self.stop(Why::BadAddress)) };
        let paging = match self.paging {
            Some(paging) => paging,
            None => {
                if self.rereads_pdptes {
                    reread_pdptes(self.state, &view);
                }
                let paging = Paging::new(self.state, self.features, self.physical_bits);
                self.paging = Some(paging);
                paging
            }
        };
        let walked = walk(&view, &paging, linear, request);
        drop(view);
        match walked {
            Ok(translation) => Ok(translation.gpa),
            Err(WalkError::Fault(code)) => Err(self.page_fault(linear, code)),
            Err(WalkError::Contended) => Err(self.stop(Why::Again)),
            Err(WalkError::Memory(MemoryError::BadAddress(_))) => Err(self.stop(Why::BadAddress)),
            // Page tables where there is no memory harm only this guest: nothing there is present.
            Err(WalkError::Memory(_)) => {
                let write = if request.is_write() { pf::WRITE } else { 0 };
                let user = if self.state.cpl == 3 { pf::USER } else { 0 };
                Err(self.page_fault(linear, write | user))
            }
        }
    }

    fn page_fault(&mut self, linear: u64, code: u32) -> Stop {
        self.payload = linear;
        Stop::fault_code(Vector::PF, code)
    }

    /// The pieces of `len` bytes (at most a page) at `linear`, all translated before any is touched.
    fn pieces(&mut self, linear: u64, len: u64, request: Request) -> Res<[Piece; 2]> {
        let room = PAGE_SIZE - linear % PAGE_SIZE;
        let first = len.min(room);
        let gpa = self.translate(linear, request)?;
        let mut pieces = [Piece { gpa, len: first as usize }, Piece { gpa: 0, len: 0 }];
        if first < len {
            let mut next = linear.wrapping_add(first);
            if self.state.mode != x86::Mode::Long64 {
                next &= 0xffff_ffff;
            }
            let gpa = self.translate(next, request)?;
            pieces[1] = Piece { gpa, len: (len - first) as usize };
        }
        Ok(pieces)
    }

    /// Runs `f` on the slots as they are now.
    pub(super) fn memory<R>(
        &mut self,
        f: impl FnOnce(&mmu::View<'_, P>) -> Result<R, MemoryError>,
    ) -> Res<Result<R, MemoryError>> {
        let Some(view) = self.vm.space(self.smm).view(self.reader) else { return Err(self.stop(Why::BadAddress)) };
        let result = f(&view);
        drop(view);
        match result {
            Err(MemoryError::BadAddress(_)) => Err(self.stop(Why::BadAddress)),
            other => Ok(other),
        }
    }

    /// Runs `write`, which writes `new` at `gpa`, and tells who has to know.
    fn write_memory<R>(
        &mut self,
        gpa: u64,
        new: &[u8],
        write: impl FnOnce(&mmu::View<'_, P>) -> Result<R, MemoryError>,
    ) -> Res<Result<R, MemoryError>> {
        match self.vm.write_by(self.reader, self.smm, gpa, new, write) {
            None | Some(Err(MemoryError::BadAddress(_))) => Err(self.stop(Why::BadAddress)),
            Some(other) => Ok(other),
        }
    }

    fn read_piece(&mut self, gpa: u64, to: &mut [u8]) -> Res {
        match self.memory(|view| view.read(gpa, to))? {
            Ok(()) => Ok(()),
            Err(_) => self.device(Space::Mmio, gpa, to, false),
        }
    }

    pub(super) fn write_piece(&mut self, gpa: u64, from: &mut [u8]) -> Res {
        let data: &[u8] = from;
        match self.write_memory(gpa, data, |view| view.write(gpa, data))? {
            Ok(()) => Ok(()),
            Err(_) => self.device(Space::Mmio, gpa, from, true),
        }
    }

    /// An access to device memory or a port, in parts of at most 8 bytes.
    fn device(&mut self, space: Space, at: u64, data: &mut [u8], write: bool) -> Res {
        let mut at = at;
        for part in data.chunks_mut(8) {
            let mut bytes = [0; 8];
            bytes[..part.len()].copy_from_slice(part);
            let value = if write { u64::from_le_bytes(bytes) } else { 0 };
            let access = DeviceAccess { space, write, at, len: part.len() as u8, data: value };
            let value = self.device_part(access)?;
            if !write {
                part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
            }
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn device_part(&mut self, mut access: DeviceAccess) -> Res<u64> {
        if let Some(value) = self.tx.replay(&access) {
            return Ok(value);
        }
        let inside = self.inside(&access);
        if inside.is_none() && access.write {
            return self.post(access);
        }
        if self.tx.has_outgoing() {
            // The client gets the earlier writes first.
            return Err(self.stop(Why::Device));
        }
        let Some(place) = inside else {
            self.tx.wait_for(access);
            return Err(self.stop(Why::Device));
        };
        let mut bytes = access.data.to_le_bytes();
        if !self.access_inside(place, &access, &mut bytes[..usize::from(access.len)]) {
            return self.post(access);
        }
        access.data = u64::from_le_bytes(bytes);
        match self.tx.record(access) {
            Ok(()) => Ok(access.data),
            Err(_) => Err(self.stop(Why::Unsupported)),
        }
    }

    /// A write goes to the client when the instruction is done.
    fn post(&mut self, access: DeviceAccess) -> Res<u64> {
        match self.tx.post(access) {
            Ok(()) => Ok(0),
            Err(_) => Err(self.stop(Why::Unsupported)),
        }
    }

    /// What inside the hypervisor answers.
    fn inside(&self, access: &DeviceAccess) -> Option<Place<P>> {
        let (space, at, len) = (access.space, access.at, access.len.into());
        if space == Space::Mmio
            && let Some(offset) = self.apic.as_ref().and_then(|apic| apic.offset(at))
        {
            return Some(Place::Apic(offset));
        }
        if space == Space::Mmio
            && self.apic.as_ref().is_some_and(|apic| apic.is_hole(at))
            && !self.vm.quirk_disabled(abi::KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
        {
            return Some(Place::Nothing);
        }
        if access.write
            && let Some(event) = self.vm.ioeventfds.find(self.reader, space, at, len, access.data)
        {
            return Some(Place::Event(event));
        }
        let device = match space {
            Space::Pio => self.vm.bus.of_port(at as u16, access.len),
            Space::Mmio => self.vm.bus.of_address(at, len),
        };
        if let Some(device) = device {
            return Some(Place::Bus(device));
        }
        let coalesced = access.write && self.vm.coalesced.wants(self.reader, space, at, len);
        coalesced.then_some(Place::Ring)
    }

    /// False: it could not be done here.
    fn access_inside(&mut self, place: Place<P>, access: &DeviceAccess, data: &mut [u8]) -> bool {
        let counter = if access.space == Space::Pio { Counter::PioKernel } else { Counter::MmioKernel };
        self.shared.stats.count(counter);
        let port = access.at as u16;
        match (place, access.space, access.write) {
            (Place::Apic(offset), _, write) => {
                if offset & !15 == TPR {
                    self.notes.tpr = Some(write);
                }
                let Some(apic) = &mut self.apic else { return false };
                if write {
                    apic.mmio_write(offset, data, self.vm, self.tsc);
                    self.state.cr8 = apic.lapic.cr8();
                } else {
                    apic.mmio_read(offset, data, self.tsc);
                }
            }
            (Place::Event(event), ..) => event.signal(),
            (Place::Nothing, _, write) => {
                if !write {
                    data.fill(0xff);
                }
            }
            (Place::Ring, space, _) => return self.vm.coalesced.push(space, access.at, data),
            (Place::Bus(device), Space::Pio, true) => {
                self.vm.port_out(device, port, access.len, access.data as u32);
            }
            (Place::Bus(device), Space::Pio, false) => {
                let value = self.vm.port_in(device, port, access.len).to_le_bytes();
                data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            }
            (Place::Bus(device), Space::Mmio, true) => self.vm.mmio_write(device, access.at, data),
            (Place::Bus(device), Space::Mmio, false) => self.vm.mmio_read(device, access.at, data),
        }
        true
    }

    fn load_as<T: Word>(&mut self, linear: u64, request: Request) -> Res<T> {
        let pieces = self.pieces(linear, T::BYTES, request)?;
        if pieces[1].len == 0
            && let Ok(value) = self.memory(|view| view.load::<T>(pieces[0].gpa))?
        {
            return Ok(value);
        }
        let mut bytes = [0; 16];
        let mut done = 0;
        for piece in pieces.iter().filter(|p| p.len != 0) {
            self.read_piece(piece.gpa, &mut bytes[done..done + piece.len])?;
            done += piece.len;
        }
        let value = u128::from_le_bytes(bytes);
        Ok(T::from_halves(value as u64, (value >> 64) as u64))
    }

    fn store_as<T: Word>(&mut self, linear: u64, value: T, request: Request) -> Res {
        let pieces = self.pieces(linear, T::BYTES, request)?;
        let mut bytes = bytes_of(value);
        let (new, gpa) = (&bytes[..T::BYTES as usize], pieces[0].gpa);
        if pieces[1].len == 0 && self.write_memory(gpa, new, |view| view.store(gpa, value))?.is_ok() {
            return Ok(());
        }
        let mut done = 0;
        for piece in pieces.iter().filter(|p| p.len != 0) {
            self.write_piece(piece.gpa, &mut bytes[done..done + piece.len])?;
            done += piece.len;
        }
        Ok(())
    }
}

/// What inside the hypervisor answers an access.
enum Place<P: Platform> {
    /// The vCPU's own local APIC, at this offset.
    Apic(u64),
    Bus(crate::vm::Device),
    /// An ioeventfd.
    Event(Shared<P::EventFd>),
    /// The ring of coalesced writes.
    Ring,
    /// Reads give ones, writes go nowhere.
    Nothing,
}

/// A word as memory holds it.
fn bytes_of<T: Word>(value: T) -> [u8; 16] {
    (u128::from(value.low()) | u128::from(value.high()) << 64).to_le_bytes()
}

impl<P: Platform, V: VectorUnit> Cpu for Guest<'_, P, V> {
    /// The log of device accesses is of one element: registers are committed behind each.
    const ELEMENTS: u64 = 1;

    fn state(&self) -> &CpuState {
        self.state
    }

    fn state_mut(&mut self) -> &mut CpuState {
        self.state
    }

    fn features(&self) -> Features {
        self.features
    }

    fn load<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        let request = self.request(Request::READ, access);
        self.load_as(linear, request)
    }

    fn store<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Res {
        let request = self.request(Request::WRITE, access);
        self.store_as(linear, value, request)
    }

    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        let request = self.request(Request::WRITE, access);
        let before = self.tx.made();
        let value = self.load_as::<T>(linear, request)?;
        self.loaded = (self.tx.made() != before).then(|| Loaded::new(linear, value));
        Ok(value)
    }

    fn compare_exchange<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T> {
        let request = self.request(Request::WRITE, access);
        // Device memory: one read, one write. If the instruction has just read the place, that was the read.
        if self.loaded.take() == Some(Loaded::new(linear, old)) {
            self.store_as(linear, new, request)?;
            return Ok(old);
        }
        let pieces = self.pieces(linear, T::BYTES, request)?;
        let contiguous = pieces[1].len == 0 || pieces[1].gpa == pieces[0].gpa.wrapping_add(pieces[0].len as u64);
        let (bytes, gpa) = (bytes_of(new), pieces[0].gpa);
        let exchange = |view: &mmu::View<'_, P>| view.compare_exchange(gpa, old, new);
        if contiguous && let Ok(seen) = self.write_memory(gpa, &bytes[..T::BYTES as usize], exchange)? {
            self.notes.lost_race |= seen != old;
            return Ok(seen);
        }
        // Pages that the host's processor cannot lock together, or a device that was not read yet.
        let seen = self.load_as(linear, request)?;
        if seen == old {
            self.store_as(linear, new, request)?;
        }
        self.notes.lost_race |= seen != old;
        Ok(seen)
    }

    fn probe_write(&mut self, linear: u64, bytes: u64, access: Access) -> Res {
        let request = self.request(Request::WRITE, access);
        let mut at = linear;
        let mut left = bytes;
        while left != 0 {
            self.translate(at, request)?;
            let step = left.min(PAGE_SIZE - at % PAGE_SIZE);
            at = at.wrapping_add(step);
            left -= step;
        }
        Ok(())
    }

    fn probe_read(&mut self, linear: u64, access: Access) -> Res {
        let request = self.request(Request::READ, access);
        self.translate(linear, request).map(|_| ())
    }

    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize> {
        let len = buf.len().min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let request = self.request(Request::FETCH, if self.state.cpl == 3 { Access::User } else { Access::System });
        let gpa = self.translate(linear, request)?;
        let to = &mut buf[..len];
        match self.memory(|view| view.read(gpa, to))? {
            Ok(()) => Ok(len),
            // Code in device memory: nothing runs it.
            Err(_) => Err(self.stop(Why::Unsupported)),
        }
    }

    fn set_payload(&mut self, payload: u64) {
        self.payload = payload;
    }

    fn payload(&self) -> u64 {
        self.payload
    }

    fn port_in(&mut self, port: u16, size: u8) -> Res<u32> {
        let mut data = [0; 4];
        let len = usize::from(size.min(4));
        self.device(Space::Pio, port.into(), &mut data[..len], false)?;
        Ok(u32::from_le_bytes(data))
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Res {
        let mut data = value.to_le_bytes();
        let len = usize::from(size.min(4));
        self.device(Space::Pio, port.into(), &mut data[..len], true)
    }

    fn ports_in(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        self.string_in(port, size, linear, count)
    }

    fn ports_out(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        self.string_out(port, size, linear, count)
    }

    fn intercept(&mut self, what: Intercept, op: &Op<Self>) -> Res {
        if what == Intercept::ReadCr8
            && let Some(register) = self.state.gpr.get_mut(usize::from(op.regs[0]))
        {
            *register = self.state.cr8;
            return Ok(());
        }
        Err(self.stop(Why::Intercept(what)))
    }

    fn tsc(&mut self) -> Res<u64> {
        Ok(self.tsc.read::<P>())
    }

    fn xcr0_supported(&self) -> u64 {
        self.xcr0
    }

    fn flush(&mut self, what: Flush) {
        self.paging = None;
        let rights = matches!(what, Flush::Rights);
        self.notes.rights |= rights;
        if !rights {
            self.notes.flush = true;
        }
    }

    fn load_physical(&mut self, gpa: u64) -> Res<u64> {
        Ok(self.memory(|view| view.load::<u64>(gpa))?.unwrap_or(u64::MAX))
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        P::random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    fn unblock_nmi(&mut self) {
        self.notes.unblock_nmi = true;
    }

    fn raise_after(&mut self, exception: Exception) {
        self.notes.after = Some(exception);
    }

    fn vector(&mut self, op: &Op<Self>, memory: Option<u64>) -> Res {
        let Some(unit) = self.vectors.take() else { return Err(self.stop(Why::Unsupported)) };
        let result = unit.execute(self, op, memory);
        self.vectors = Some(unit);
        result
    }
}
