//! The rows of the table.
use iced_x86::{IcedError, code_asm::*};
use x86::paging::{P, W};

use super::{
    Measured, Row,
    guest::{Loop, VECTOR, wrmsr},
};
use crate::{
    Device,
    guest::layout::{FRAMES, RAM_END, sel},
    runner::Target,
};

/// The edge/level register of the first 8259A: served where the interrupt controllers are.
const ELCR: i32 = 0x4d0;
/// Counter 0 of the 8254.
const PIT: i32 = 0x40;
/// A port that nobody in the hypervisor serves.
const CLIENTS: i32 = 0xe0;

const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;
const LVT_TIMER: u32 = 0x832;
const SELF_IPI: u32 = 0x83f;
/// LVT timer: mode "TSC deadline".
const DEADLINE_MODE: u32 = 2 << 17;

/// All of them.
pub const ROWS: &[Row] = &[
    Row { name: "cpuid", measure: |device| cpuid(device, 0) },
    Row { name: "cpuid, a high leaf", measure: |device| cpuid(device, 0x8000_0008) },
    Row { name: "hypercall", measure: hypercall },
    Row { name: "hypercall of the other vendor", measure: other_hypercall },
    Row { name: "in from the kernel", measure: |device| port_in(device, ELCR) },
    Row { name: "out to the kernel", measure: |device| port_out(device, ELCR) },
    Row { name: "in from the kernel's PIT", measure: |device| port_in(device, PIT) },
    Row { name: "in from the client", measure: |device| port_in(device, CLIENTS) },
    Row { name: "out to the client", measure: |device| port_out(device, CLIENTS) },
    Row { name: "read of TSC_ADJUST", measure: tsc_adjust },
    Row { name: "write of SPURIOUS (x2APIC)", measure: |device| write_msr(device, 0x80f, 0x1ff) },
    Row { name: "TSC deadline, immediate", measure: deadline },
    Row { name: "self IPI, sti, nop", measure: self_ipi },
    Row { name: "CR0.WP there and back", measure: toggle_wp },
    Row { name: "load of CR3", measure: load_cr3 },
    Row { name: "INVLPG", measure: invlpg },
    Row { name: "page fault of the guest's own", measure: own_fault },
    Row { name: "page-table entry changed, INVLPG, read", measure: entry },
    Row { name: "first touch of a page the client has", measure: |device| touch(device, true) },
    Row { name: "first touch of a page nobody has", measure: |device| touch(device, false) },
];

/// A row that needs nothing done before.
fn plain(device: &Device, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Measured {
    Loop::default().measure(device, |_| Ok(()), body)
}

fn cpuid(device: &Device, leaf: u32) -> Measured {
    plain(device, |a| {
        a.mov(eax, leaf)?;
        a.xor(ecx, ecx)?;
        a.cpuid()
    })
}

/// A call that does not exist.
const NO_CALL: u32 = 0x1234;

fn on_intel(device: &Device) -> bool {
    Target::IN_BOCHS.contains(device.target())
}

fn hypercall(device: &Device) -> Measured {
    let intel = on_intel(device);
    plain(device, |a| {
        a.mov(eax, NO_CALL)?;
        if intel { a.vmcall() } else { a.vmmcall() }
    })
}

fn other_hypercall(device: &Device) -> Measured {
    let intel = on_intel(device);
    let it = Loop::default();
    let mut machine = it.machine(
        |_| Ok(()),
        |a| {
            a.mov(eax, NO_CALL)?;
            if intel { a.vmmcall() } else { a.vmcall() }
        },
    );
    // Its page may be written, as the hypervisor may exchange the instruction.
    let code = machine.regs.rip & !0xfff;
    machine.map(code, code | P | W);
    it.run(&Loop::start(&machine, device))
}

fn port_in(device: &Device, port: i32) -> Measured {
    plain(device, |a| {
        a.mov(edx, port)?;
        a.in_(al, dx)
    })
}

fn port_out(device: &Device, port: i32) -> Measured {
    plain(device, |a| {
        a.mov(edx, port)?;
        a.xor(eax, eax)?;
        a.out(dx, al)
    })
}

fn tsc_adjust(device: &Device) -> Measured {
    plain(device, |a| {
        a.mov(ecx, TSC_ADJUST)?;
        a.rdmsr()
    })
}

fn write_msr(device: &Device, index: u32, value: u32) -> Measured {
    plain(device, |a| wrmsr(a, index, value))
}

fn deadline(device: &Device) -> Measured {
    Loop::default().measure(
        device,
        |a| {
            wrmsr(a, LVT_TIMER, DEADLINE_MODE | u32::from(VECTOR))?;
            a.sti()
        },
        |a| {
            wrmsr(a, TSC_DEADLINE, 1)?;
            a.nop()
        },
    )
}

fn self_ipi(device: &Device) -> Measured {
    plain(device, |a| {
        wrmsr(a, SELF_IPI, VECTOR.into())?;
        a.sti()?;
        a.nop()?;
        a.cli()
    })
}

fn toggle_wp(device: &Device) -> Measured {
    plain(device, |a| {
        for _ in 0..2 {
            a.mov(rax, cr0)?;
            a.btc(eax, 16)?;
            a.mov(cr0, rax)?;
        }
        Ok(())
    })
}

fn load_cr3(device: &Device) -> Measured {
    Loop::default().measure(device, |a| a.mov(rsi, cr3), |a| a.mov(cr3, rsi))
}

fn invlpg(device: &Device) -> Measured {
    Loop::default().measure(
        device,
        |a| a.mov(esi, FRAMES as u32),
        |a| {
            a.invlpg(byte_ptr(rsi))?;
            a.mov(al, byte_ptr(rsi))
        },
    )
}

/// Where nothing is mapped.
const NOTHING: u32 = 0x4000_0000;

fn own_fault(device: &Device) -> Measured {
    let it = Loop::default();
    // The handler goes on behind the access, which is of two bytes.
    let mut machine = it.machine(|a| a.mov(esi, NOTHING), |a| a.mov(al, byte_ptr(rsi)));
    let handler = machine.code(|a| {
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    machine.gate(14, sel::CODE, handler, 0x8e, 0);
    it.run(&Loop::start(&machine, device))
}

/// A linear address of its own, and the two frames that it is given in turn.
const PAGE: u64 = 0x8000_0000;
const TURNS: [u64; 2] = [FRAMES, FRAMES + 0x1000];

fn entry(device: &Device) -> Measured {
    let it = Loop::default();
    let mut machine = crate::guest::Machine::new(crate::guest::Mode::LONG);
    machine.map(PAGE, TURNS[0] | P | W);
    let at = machine.entry(PAGE, 1);
    let mut machine = it.machine(
        |a| {
            a.mov(rsi, at)?;
            a.mov(rdi, PAGE)
        },
        |a| {
            a.xor(dword_ptr(rsi), (TURNS[0] ^ TURNS[1]) as i32)?;
            a.invlpg(byte_ptr(rdi))?;
            a.mov(al, byte_ptr(rdi))
        },
    );
    machine.map(PAGE, TURNS[0] | P | W);
    assert_eq!(machine.entry(PAGE, 1), at, "tables are made in the same order");
    it.run(&Loop::start(&machine, device))
}

/// Every iteration another page.
fn touch(device: &Device, there: bool) -> Measured {
    let it = Loop { rounds: 7, iterations: 400 };
    let machine = it.machine(
        |a| a.mov(esi, FRAMES as u32),
        |a| {
            a.mov(byte_ptr(rsi), al)?;
            a.add(rsi, 0x1000)
        },
    );
    let live = Loop::start(&machine, device);
    // Small pages, whatever the host would give.
    live.memory.advise(0, RAM_END as usize, libc::MADV_NOHUGEPAGE);
    live.memory.discard(FRAMES as usize, (RAM_END - FRAMES) as usize);
    if there {
        (FRAMES..RAM_END).step_by(4096).for_each(|page| live.memory.set_u8(page as usize, 1));
    }
    it.run(&live)
}
