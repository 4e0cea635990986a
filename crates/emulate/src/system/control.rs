//! The rules for control registers, EFER and XCR0: which values are legal, and what a change brings with it. The
//! emulator's MOV to CR uses them, and so does the hypervisor for exits and for its own loads (SDM vol. 3, 2.5, 4.1
//! and 9.8; APM vol. 2, 3.1).
use x86::{CpuState, Cr0, Cr4, Efer, Features, Mode, Seg, control::xcr0, paging};

use super::privilege_changed;
use crate::{Cpu, Flush, Res, Stop};

/// A value that the processor refuses: #GP(0) for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal;

impl From<Illegal> for Stop {
    fn from(_: Illegal) -> Self {
        Self::GP0
    }
}

/// Bits of CR4 that decide how paging structures are read; a change flushes everything.
const CR4_PAGING: Cr4 = Cr4::PSE.union(Cr4::PAE).union(Cr4::PGE).union(Cr4::LA57).union(Cr4::PCIDE);
/// Bit 63 of the value moved to CR3 with CR4.PCIDE: keep translations.
const CR3_NO_FLUSH: u64 = 1 << 63;

/// MOV to CR0.
pub fn write_cr0<C: Cpu>(cpu: &mut C, value: u64) -> Res {
    if value >> 32 != 0 {
        return Err(Stop::GP0);
    }
    let has = |bit: Cr0| value & bit.bits() != 0;
    if has(Cr0::PG) && !has(Cr0::PE) || has(Cr0::NW) && !has(Cr0::CD) {
        return Err(Stop::GP0);
    }
    let state = cpu.state();
    let old = state.cr0;
    let value = value & Cr0::all().bits() | Cr0::ET.bits();
    let (pae, pcide) = (state.cr4 & Cr4::PAE.bits() != 0, state.cr4 & Cr4::PCIDE.bits() != 0);
    let mut efer = state.efer;
    let mut pdptr = None;
    if has(Cr0::PG) && !state.paging() {
        if efer & Efer::LME.bits() != 0 {
            // A 64-bit code segment or a 16-bit TSS cannot enter long mode.
            if !pae || state.seg[Seg::Cs as usize].attr.long() || matches!(state.tr.attr.typ(), 1 | 3) {
                return Err(Stop::GP0);
            }
            efer |= Efer::LMA.bits();
        }
    } else if !has(Cr0::PG) && state.paging() {
        if state.mode == Mode::Long64 || pcide {
            return Err(Stop::GP0);
        }
        efer &= !Efer::LMA.bits();
    }
    let pae_bits = (Cr0::PG | Cr0::CD | Cr0::NW).bits();
    if has(Cr0::PG) && pae && efer & Efer::LMA.bits() == 0 && (old ^ value) & pae_bits != 0 {
        pdptr = Some(load_pdptrs(cpu, cpu.state().cr3)?);
    }

    let state = cpu.state_mut();
    if let Some(pdptr) = pdptr {
        state.pdptr = pdptr;
    }
    state.cr0 = value;
    state.efer = efer;
    if (old ^ value) & Cr0::PG.bits() != 0 {
        cpu.flush(Flush::All);
    }
    privilege_changed(cpu);
    Ok(())
}

/// MOV to CR3.
pub fn write_cr3<C: Cpu>(cpu: &mut C, value: u64) -> Res {
    let state = cpu.state();
    let pcide = state.cr4 & Cr4::PCIDE.bits() != 0;
    let keep = pcide && value & CR3_NO_FLUSH != 0;
    let value = if pcide { value & !CR3_NO_FLUSH } else { value };
    if state.long_mode() {
        if value >> cpu.physical_bits().min(63) != 0 {
            return Err(Stop::GP0);
        }
    } else if state.paging() && state.cr4 & Cr4::PAE.bits() != 0 {
        let pdptr = load_pdptrs(cpu, value)?;
        cpu.state_mut().pdptr = pdptr;
    }
    cpu.state_mut().cr3 = value;
    cpu.flush(Flush::Cr3 { keep });
    Ok(())
}

/// The bits of CR4 that a processor with `features` has.
pub fn cr4_supported(features: Features) -> Cr4 {
    let by_feature = [
        (Features::VME, Cr4::VME | Cr4::PVI),
        (Features::TSC, Cr4::TSD),
        (Features::DE, Cr4::DE),
        (Features::PSE, Cr4::PSE),
        (Features::PAE, Cr4::PAE),
        (Features::MCE, Cr4::MCE),
        (Features::PGE, Cr4::PGE),
        (Features::FXSR, Cr4::OSFXSR),
        (Features::SSE, Cr4::OSXMMEXCPT),
        (Features::UMIP, Cr4::UMIP),
        (Features::FSGSBASE, Cr4::FSGSBASE),
        (Features::PCID, Cr4::PCIDE),
        (Features::XSAVE, Cr4::OSXSAVE),
        (Features::SMEP, Cr4::SMEP),
        (Features::SMAP, Cr4::SMAP),
    ];
    by_feature.iter().filter(|(f, _)| features.contains(*f)).fold(Cr4::PCE, |all, (_, bits)| all | *bits)
}

/// MOV to CR4.
pub fn write_cr4<C: Cpu>(cpu: &mut C, value: u64) -> Res {
    let new = Cr4::from_bits(value).ok_or(Stop::GP0)?;
    if !cr4_supported(cpu.features()).contains(new) {
        return Err(Stop::GP0);
    }
    let state = cpu.state();
    let changed = Cr4::from_bits_retain(state.cr4 ^ value);
    if state.long_mode() && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57)) {
        return Err(Stop::GP0);
    }
    let sets_pcide = changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE);
    if sets_pcide && (!state.long_mode() || state.cr3 & 0xfff != 0) {
        return Err(Stop::GP0);
    }
    let pae_bits = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
    let cr3 = state.cr3;
    let pdptr = if state.paging() && !state.long_mode() && new.contains(Cr4::PAE) && changed.intersects(pae_bits) {
        Some(load_pdptrs(cpu, cr3)?)
    } else {
        None
    };

    let state = cpu.state_mut();
    if let Some(pdptr) = pdptr {
        state.pdptr = pdptr;
    }
    state.cr4 = value;
    if changed.intersects(CR4_PAGING) {
        cpu.flush(Flush::All);
    }
    privilege_changed(cpu);
    Ok(())
}

/// Reads and checks the PDPTEs that PAE paging caches when CR3 is loaded (SDM vol. 3, 4.4.1).
pub fn load_pdptrs<C: Cpu>(cpu: &mut C, cr3: u64) -> Res<[u64; 4]> {
    let base = cr3 & 0xffff_ffe0;
    let mut entries = [0; 4];
    // Bits 2:1, 8:5 and those above the physical address are reserved.
    let reserved = 0x1e6 | u64::MAX << cpu.physical_bits().min(63);
    for (n, entry) in entries.iter_mut().enumerate() {
        *entry = cpu.load_physical(base + n as u64 * 8)?;
        if *entry & paging::P != 0 && *entry & reserved != 0 {
            return Err(Stop::GP0);
        }
    }
    Ok(entries)
}

/// Whether the hypervisor may set these control registers and EFER together (KVM_SET_SREGS): the combinations that no
/// sequence of instructions reaches are refused.
pub fn check_control(features: Features, cr0: u64, cr4: u64, efer: u64) -> Result<(), Illegal> {
    let has = |bit: Cr0| cr0 & bit.bits() != 0;
    let paging = has(Cr0::PG);
    if cr0 >> 32 != 0 || paging && !has(Cr0::PE) || has(Cr0::NW) && !has(Cr0::CD) {
        return Err(Illegal);
    }
    let cr4 = Cr4::from_bits(cr4).ok_or(Illegal)?;
    let lma = efer & Efer::LMA.bits() != 0;
    let long = paging && efer & Efer::LME.bits() != 0;
    if !cr4_supported(features).contains(cr4)
        || efer & !efer_supported(features) & !Efer::LMA.bits() != 0
        || lma != long
        || lma && !cr4.contains(Cr4::PAE)
        || cr4.contains(Cr4::PCIDE) && !lma
    {
        return Err(Illegal);
    }
    Ok(())
}

/// The bits of EFER that software can set on a processor with `features`.
pub fn efer_supported(features: Features) -> u64 {
    let by_feature = [
        (Features::SYSCALL, Efer::SCE),
        (Features::LM, Efer::LME),
        (Features::NX, Efer::NXE),
        (Features::FFXSR, Efer::FFXSR),
    ];
    by_feature.iter().filter(|(f, _)| features.contains(*f)).fold(0, |all, (_, bit)| all | bit.bits())
}

/// WRMSR to EFER: checks `value` and writes it to `state`. Answers which translations become stale, if any.
pub fn write_efer(state: &mut CpuState, features: Features, value: u64) -> Result<Option<Flush>, Illegal> {
    let lma = Efer::LMA.bits();
    // LMA is read-only; software writes back what it has read.
    if value & !(efer_supported(features) | lma) != 0 {
        return Err(Illegal);
    }
    if state.paging() && (state.efer ^ value) & Efer::LME.bits() != 0 {
        return Err(Illegal);
    }
    let new = value & !lma | state.efer & lma;
    let flush = if (state.efer ^ new) & Efer::NXE.bits() != 0 { Some(Flush::All) } else { None };
    state.efer = new;
    Ok(flush)
}

/// Whether XCR0 may hold `value` on a processor that supports the components `supported` (SDM vol. 1, 13.3).
pub fn check_xcr0(supported: u64, value: u64) -> Result<(), Illegal> {
    let avx_alone = value & (xcr0::AVX | xcr0::SSE) == xcr0::AVX;
    if value & xcr0::X87 == 0 || value & !supported != 0 || avx_alone { Err(Illegal) } else { Ok(()) }
}
