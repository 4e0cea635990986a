//! The task-state segment of 16 and 32 bits as it lies in memory (SDM vol. 3, figures 7-2 and 7-10).
use x86::{Attr, CpuState, Vector, segment::system_type};

use super::descriptor::{fault, system_address};
use crate::{Access, Cpu, Res};

/// The registers that a TSS holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TaskState {
    /// 32-bit TSS only.
    pub cr3: Option<u32>,
    pub ip: u32,
    pub flags: u32,
    pub gpr: [u32; 8],
    /// In the order of the segment registers' numbers.
    pub selectors: [u16; 6],
    pub ldt: u16,
    /// The T bit: #DB when the task is entered.
    pub trap: bool,
}

impl TaskState {
    /// What is saved of the current task.
    pub fn of(state: &CpuState, rip: u64, flags: u64) -> Self {
        let mut gpr = [0; 8];
        for (saved, register) in gpr.iter_mut().zip(state.gpr) {
            *saved = register as u32;
        }
        let selectors = state.seg.map(|segment| segment.selector);
        Self { ip: rip as u32, flags: flags as u32, gpr, selectors, ..Self::default() }
    }
}

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Bits16,
    Bits32,
}

impl Layout {
    /// The format of a TSS descriptor.
    pub fn of(attr: Attr) -> Self {
        match attr.typ() {
            system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY => Self::Bits16,
            _ => Self::Bits32,
        }
    }

    /// The least limit of a TSS.
    pub fn min_limit(self) -> u32 {
        match self {
            Self::Bits16 => 0x2b,
            Self::Bits32 => 0x67,
        }
    }

    /// The type of a busy TSS descriptor.
    pub fn busy_type(self) -> u8 {
        match self {
            Self::Bits16 => system_type::TSS16_BUSY,
            Self::Bits32 => system_type::TSS_BUSY,
        }
    }

    /// Bytes of a register in it, and of what its task pushes.
    pub fn word(self) -> u8 {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    /// Offset of the instruction pointer, with which the saved part begins.
    fn saved(self) -> u64 {
        match self {
            Self::Bits16 => 14,
            Self::Bits32 => 32,
        }
    }

    /// Segment registers that it has: FS and GS are younger than the 16-bit format.
    fn segments(self) -> usize {
        match self {
            Self::Bits16 => 4,
            Self::Bits32 => 6,
        }
    }

    /// Values of the saved part: instruction pointer, flags, eight registers, segments.
    fn saved_values(self) -> u64 {
        10 + self.segments() as u64
    }

    fn read<C: Cpu>(self, cpu: &mut C, base: u64, offset: u64) -> Res<u32> {
        let at = system_address(cpu.state(), base.wrapping_add(offset));
        match self {
            Self::Bits16 => cpu.load::<u16>(at, Access::System).map(u32::from),
            Self::Bits32 => cpu.load(at, Access::System),
        }
    }

    /// Reads the new task's TSS at the linear address `base`.
    pub fn load<C: Cpu>(self, cpu: &mut C, base: u64) -> Res<TaskState> {
        let word = self.word() as u64;
        let mut offset = self.saved();
        let mut next = |cpu: &mut C| {
            let value = self.read(cpu, base, offset);
            offset += word;
            value
        };
        let mut task = TaskState { ip: next(cpu)?, flags: next(cpu)?, ..TaskState::default() };
        // A 16-bit task finds ones in the upper halves of its registers.
        let upper = if self == Self::Bits16 { 0xffff_0000 } else { 0 };
        for register in &mut task.gpr {
            *register = next(cpu)? | upper;
        }
        for selector in task.selectors.iter_mut().take(self.segments()) {
            *selector = next(cpu)? as u16;
        }
        task.ldt = next(cpu)? as u16;
        if self == Self::Bits32 {
            task.cr3 = Some(self.read(cpu, base, 28)?);
            task.trap = self.read(cpu, base, 100)? & 1 != 0;
        }
        Ok(task)
    }

    /// Checks that the current task can be saved.
    pub fn probe<C: Cpu>(self, cpu: &mut C) -> Res {
        let tr = cpu.state().tr;
        let bytes = self.saved_values() * self.word() as u64;
        if self.saved() + bytes - 1 > tr.limit as u64 {
            return Err(fault(Vector::TS, tr.selector, 0));
        }
        let at = system_address(cpu.state(), tr.base.wrapping_add(self.saved()));
        cpu.probe_write(at, bytes, Access::System)
    }

    /// Saves the current task.
    pub fn store<C: Cpu>(self, cpu: &mut C, task: &TaskState) -> Res {
        let start = cpu.state().tr.base.wrapping_add(self.saved());
        let selectors = task.selectors.iter().take(self.segments()).map(|&selector| selector as u32);
        let values = [task.ip, task.flags].into_iter().chain(task.gpr).chain(selectors);
        for (n, value) in values.enumerate() {
            let at = system_address(cpu.state(), start.wrapping_add(n as u64 * self.word() as u64));
            match self {
                Self::Bits16 => cpu.store(at, value as u16, Access::System)?,
                Self::Bits32 => cpu.store(at, value, Access::System)?,
            }
        }
        Ok(())
    }
}
