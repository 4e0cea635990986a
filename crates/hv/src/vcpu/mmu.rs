//! Which tables a vCPU walks: what its registers say about translation, and the shadow root that belongs to it; or the nested
//! root, which is the same whatever they say.
use mmu::{
    Paging, TableMemory,
    shadow::{Cache, Root, Shadow},
    walk::read_pdptes,
};
use platform::{MaySleep, Platform};
use x86::{CpuState, Cr0, Cr4, Efer, Features};

use super::{Inner, Run};
use crate::{
    Errno,
    backend::{Backend, BackendVcpu, FlushTlb, Groups},
};

/// The registers that translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    pdptr: [u64; 4],
    features: Features,
    physical_bits: u32,
}

impl Context {
    fn of(state: &CpuState, features: Features, physical_bits: u32) -> Self {
        let cr4 = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP;
        Self {
            cr0: state.cr0 & (Cr0::PE | Cr0::PG | Cr0::WP).bits(),
            cr3: state.cr3,
            cr4: state.cr4 & cr4.bits(),
            efer: state.efer & (Efer::LMA | Efer::NXE).bits(),
            pdptr: state.pdptr,
            features,
            physical_bits,
        }
    }
}

/// What a processor that reads PAE's page-directory pointers in every walk finds in `view`. Where there is no memory, none is
/// present.
pub(crate) fn reread_pdptes<M: TableMemory>(state: &mut CpuState, view: &M) {
    if state.pae() {
        state.pdptr = read_pdptes(view, state.cr3).unwrap_or_default();
    }
}

/// Shadow paging or nested paging of one vCPU.
pub(crate) struct VcpuMmu<P: Platform> {
    pub(crate) cache: Cache<P>,
    current: Option<(Context, Paging)>,
    /// CR0, CR3, CR4 and EFER with which the root was loaded, unless those are not all that it depends on.
    registers: Option<[u64; 4]>,
    root: Root,
    /// The guest has made the vCPU forget its translations: before it is entered, what it walks is brought in step.
    pub(crate) flushed: bool,
    /// The write to a page table that is being emulated.
    pub(crate) table_write: Option<u64>,
    /// Linear address of the instruction, and the write, for which a page table was unprotected; while nothing but page
    /// faults of that instruction has happened since.
    pub(crate) unprotected: Option<(u64, u64)>,
}

impl<P: Platform> Default for VcpuMmu<P> {
    fn default() -> Self {
        Self {
            cache: Cache::default(),
            current: None,
            registers: None,
            root: Root::NONE,
            flushed: true,
            table_write: None,
            unprotected: None,
        }
    }
}

impl<B: Backend> Inner<B> {
    /// The guest makes its processor forget all translations, or somebody does in its name.
    pub(crate) fn flush_guest(&mut self) {
        self.mmu.flushed = true;
        self.cpu.flush(FlushTlb::All);
    }

    /// What the registers say about translation.
    pub(crate) fn paging(&mut self) -> Paging {
        let (features, physical_bits) = (self.features, self.physical_bits);
        let context = Context::of(self.cpu.registers(Groups::CONTROL), features, physical_bits);
        match self.mmu.current {
            Some((known, paging)) if known == context => paging,
            _ => Paging::new(self.cpu.registers(Groups::CONTROL), features, physical_bits),
        }
    }
}

impl<B: Backend> Run<'_, B> {
    /// The root to enter the guest with. Follows whatever has changed the registers, or taken the root away.
    pub(super) fn load_root(&mut self, cx: &MaySleep) -> Result<Root, Errno> {
        let Some(shadow) = &self.vm.shadow else { return Ok(Root::NONE) };
        if shadow.is_nested() {
            return self.load_nested_root(shadow, cx);
        }
        let root = self.load_shadow_root(shadow, cx)?;
        if core::mem::take(&mut self.inner.mmu.flushed) {
            let (vm, index, cpu) = (self.vm, self.index, &mut self.inner.cpu);
            shadow.guest_flushed(index, &vm.memory, || {
                vm.vcpus.flush_tlbs_by(index, cpu);
            })?;
        }
        Ok(root)
    }

    fn load_shadow_root(&mut self, shadow: &Shadow<B::Platform>, cx: &MaySleep) -> Result<Root, Errno> {
        let inner = &mut *self.inner;
        let state = inner.cpu.registers(Groups::CONTROL);
        // CPUID does not change any more, and outside of PAE paging these are all.
        let registers = (!state.pae()).then_some([state.cr0, state.cr3, state.cr4, state.efer]);
        if registers.is_some() && registers == inner.mmu.registers && !shadow.root_is_stale(self.index) {
            return Ok(inner.mmu.root);
        }
        let (features, physical_bits) = (inner.features, inner.physical_bits);
        let context = Context::of(state, features, physical_bits);
        inner.mmu.registers = None;
        let known = inner.mmu.current.filter(|(known, _)| *known == context);
        if known.is_some() && !shadow.root_is_stale(self.index) {
            inner.mmu.registers = registers;
            return Ok(inner.mmu.root);
        }
        let paging = match known {
            Some((_, paging)) => paging,
            None => Paging::new(inner.cpu.registers(Groups::CONTROL), features, physical_bits),
        };
        let (vm, index, cpu, mmu) = (self.vm, self.index, &mut inner.cpu, &mut inner.mmu);
        mmu.current = None;
        mmu.root = shadow.load_root(index, &paging, &vm.memory, &mut mmu.cache, cx, || {
            vm.vcpus.flush_tlbs_by(index, cpu);
        })?;
        mmu.current = Some((context, paging));
        mmu.registers = registers;
        // Translations that come from other tables, or from the same in another role.
        inner.cpu.flush(FlushTlb::All);
        Ok(inner.mmu.root)
    }

    /// The same for nested tables, whatever the registers say.
    fn load_nested_root(&mut self, shadow: &Shadow<B::Platform>, cx: &MaySleep) -> Result<Root, Errno> {
        let (vm, index, cpu, mmu) = (self.vm, self.index, &mut self.inner.cpu, &mut self.inner.mmu);
        if mmu.root != Root::NONE && !shadow.root_is_stale(self.index) {
            return Ok(mmu.root);
        }
        mmu.root = shadow.load_nested_root(index, &vm.memory, &mut mmu.cache, cx, || {
            vm.vcpus.flush_tlbs_by(index, cpu);
        })?;
        // Translations that come from other tables.
        self.inner.cpu.flush(FlushTlb::Physical);
        Ok(self.inner.mmu.root)
    }

    /// Whether the root went away after [`Self::load_root`]. Asked after "in the guest" has been published.
    pub(super) fn root_is_stale(&self) -> bool {
        self.vm.shadow.as_ref().is_some_and(|shadow: &Shadow<_>| shadow.root_is_stale(self.index))
    }
}
