//! A guest that counts: in long mode, with the interrupt controllers in the hypervisor and its local APIC in x2APIC mode.
use abi::{KVM_EXIT_IO, KVM_GET_SUPPORTED_CPUID, KVM_RUN, KvmRunIo};
use iced_x86::{IcedError, code_asm::*};

use crate::{
    Device,
    guest::{
        Live, Machine, Mode,
        layout::{FRAMES, RAM_END, RESULTS, sel},
    },
    vm::cpuid2,
};

/// Times of the counter that one round of iterations took, for each round; in order of size.
pub struct Measured {
    rounds: Vec<u64>,
    iterations: u32,
}

impl Measured {
    /// What one iteration takes: the median.
    pub fn each(&self) -> u64 {
        let all = self.rounds.get(self.rounds.len() / 2).copied().unwrap_or(0);
        all / u64::from(self.iterations.max(1))
    }
}

/// The vector whose handler ends the interrupt and does nothing.
pub const VECTOR: u8 = 0x41;
/// The port to which the guest writes when it is done.
const DONE: i32 = 0x99;
/// CPUID leaf 1, ECX: the local APIC's timer knows the mode "TSC deadline".
const TSC_DEADLINE: u32 = 1 << 24;
/// x2APIC registers.
const APIC_BASE: u32 = 0x1b;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;

/// What is measured: `rounds` times `iterations` times `body`, which leaves R12 to R15 alone.
pub struct Loop {
    /// How often it is measured.
    pub rounds: u32,
    /// How often it is done each time.
    pub iterations: u32,
}

impl Default for Loop {
    fn default() -> Self {
        Self { rounds: 9, iterations: 200 }
    }
}

/// WRMSR of a value of 32 bits.
pub fn wrmsr(a: &mut CodeAssembler, index: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// The counter, in RAX.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

impl Loop {
    /// A machine that does it. `before` is done once; then the machine can still be changed.
    pub fn machine(
        &self,
        before: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Machine {
        let mut machine = Machine::new(Mode::LONG);
        machine.code(|a| {
            let (mut round, mut again) = (a.create_label(), a.create_label());
            a.mov(ecx, APIC_BASE)?;
            a.rdmsr()?;
            a.or(eax, 0xc00)?;
            a.wrmsr()?;
            wrmsr(a, SPURIOUS, 0x1ff)?;
            before(a)?;
            a.mov(r13d, self.rounds)?;
            a.mov(r14d, RESULTS as u32)?;
            a.set_label(&mut round)?;
            a.mov(r15d, self.iterations)?;
            count(a)?;
            a.mov(r12, rax)?;
            a.set_label(&mut again)?;
            body(a)?;
            a.dec(r15d)?;
            a.jnz(again)?;
            count(a)?;
            a.sub(rax, r12)?;
            a.mov(qword_ptr(r14), rax)?;
            a.add(r14, 8)?;
            a.dec(r13d)?;
            a.jnz(round)?;
            a.out(DONE, al)
        });
        let handler = machine.code(|a| {
            for register in [rax, rcx, rdx] {
                a.push(register)?;
            }
            wrmsr(a, EOI, 0)?;
            for register in [rdx, rcx, rax] {
                a.pop(register)?;
            }
            a.iretq()
        });
        machine.gate(VECTOR, sel::CODE, handler, 0x8e, 0);
        // What a row may touch.
        for page in (FRAMES..RAM_END).step_by(2 << 20) {
            machine.map_large(page, page | 3);
        }
        machine
    }

    /// A machine like that, on a device.
    pub fn start(machine: &Machine, device: &Device) -> Live {
        let vm = device.vm();
        vm.irqchip();
        vm.pit();
        let live = machine.start_in(device, vm);
        // The kernel offers the timer by a capability only.
        let mut cpuid = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID);
        cpuid.iter_mut().filter(|entry| entry.function == 1).for_each(|entry| entry.ecx |= TSC_DEADLINE);
        live.vcpu.set_cpuid(&cpuid).expect("KVM_SET_CPUID2");
        live
    }

    /// Runs it. A client answers what reaches it as it stands.
    pub fn run(&self, live: &Live) -> Measured {
        let page = live.vcpu.page;
        loop {
            live.vcpu.fd.number(KVM_RUN, 0).expect("KVM_RUN");
            assert_eq!(page.exit_reason(), KVM_EXIT_IO, "at {:#x}", live.vcpu.regs().rip);
            if i32::from(page.payload::<KvmRunIo>().port) == DONE {
                break;
            }
        }
        let mut rounds: Vec<_> =
            (0..self.rounds).map(|round| live.memory.u64(RESULTS as usize + 8 * round as usize)).collect();
        rounds.sort_unstable();
        Measured { rounds, iterations: self.iterations }
    }

    /// Measures `body`.
    pub fn measure(
        &self,
        device: &Device,
        before: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Measured {
        self.run(&Self::start(&self.machine(before, body), device))
    }
}
