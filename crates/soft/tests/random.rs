//! Random code: it always comes back, and runs in blocks as it does instruction by instruction.
mod common;

use common::{CODE, DATA, Guest, STACK, Test};
use emulate::testing::Random;
use hv::backend::{BackendVcpu, Exit, Groups, GuestDebug};
use soft::SoftVcpu;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Instructions with two bytes of ModRM and displacement or immediate that are left to chance.
const OPCODES: &[&[u8]] = &[
    &[0x48, 0x01],
    &[0x29],
    &[0x48, 0x8b, 0x4b],
    &[0x48, 0x89, 0x43],
    &[0x88, 0x63],
    &[0x0f, 0xb6],
    &[0x48, 0x83],
    &[0x50],
    &[0x58],
    &[0x9c],
    &[0x75],
    &[0x72],
    &[0xeb],
    &[0xe8, 0x05, 0x00, 0x00, 0x00],
    &[0xc3],
    &[0xf3, 0xa4],
    &[0xaa],
    &[0x48, 0xd3],
    &[0x0f, 0x95],
    &[0x48, 0xf7],
    &[0x87, 0x4b],
    &[0xf0, 0x0f, 0xc1, 0x4b],
    &[0xc6, 0x05, 0x04, 0x00, 0x00, 0x00],
    &[0x0f, 0x58],
    &[0xfa],
    &[0xfb],
    &[0xcc],
    &[0x90],
];

fn program(random: &mut Random, soup: bool) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 200 {
        if !soup {
            code.extend_from_slice(OPCODES[random.below(OPCODES.len() as u64) as usize]);
        }
        for _ in 0..random.below(3) {
            code.push(random.bits() as u8);
        }
    }
    code.push(0xf4);
    code
}

fn guest(code: &[u8], seed: u64) -> (Guest, SoftVcpu<Test>) {
    let g = Guest::new();
    // Every exception ends the program; the handlers tell the vectors apart.
    g.descriptors(|v| 0x11_0000 + 16 * v);
    for v in 0..256 {
        g.write(0x11_0000 + 16 * v, &[0xf4]);
    }
    g.write(CODE, code);
    let mut v = g.long(0);
    let mut random = Random::new(&[seed]);
    let s = v.registers_mut(Groups::ALL);
    for (n, r) in s.gpr.iter_mut().enumerate() {
        *r = match n {
            1 => random.below(40),
            3 | 5 | 6 | 7 => DATA + random.below(0x2000),
            4 => STACK,
            _ => random.bits(),
        };
    }
    (g, v)
}

/// Runs until something other than a step ends it, at most `limit` instructions when stepping.
fn run(g: &Guest, v: &mut SoftVcpu<Test>, step: bool, limit: u64) -> Option<Exit> {
    v.set_debug(GuestDebug { single_step: step, ..Default::default() });
    if !step {
        return Some(g.enter(v));
    }
    for _ in 0..limit {
        match g.enter(v) {
            Exit::Debug { .. } => {}
            exit => return Some(exit),
        }
    }
    None
}

#[test]
fn blocks_do_what_single_steps_do() {
    let mut random = Random::new(&[0x1234_5678_9abc_def1]);
    for n in 0..150 {
        let code = program(&mut random, n % 5 == 0);
        let seed = random.bits();
        let (g, mut v) = guest(&code, seed);
        // Programs that do not end say nothing.
        let Some(stepped) = run(&g, &mut v, true, 2000) else { continue };
        let (h, mut w) = guest(&code, seed);
        let whole = run(&h, &mut w, false, 0);
        if w.registers(Groups::ALL).rip == 0x11_0010 {
            // It set the trap flag, which belongs to the debugger while that steps.
            continue;
        }
        assert_eq!(Some(stepped), whole, "{code:02x?}");
        let (a, b) = (v.registers(Groups::ALL).clone(), w.registers(Groups::ALL).clone());
        assert_eq!((a.gpr, a.rip, a.cr2), (b.gpr, b.rip, b.cr2), "{code:02x?}");
        assert_eq!(a.flags.get() & !x86::flags::RF, b.flags.get() & !x86::flags::RF, "{code:02x?}");
        assert_eq!(a.fpu, b.fpu);
        for at in (DATA - 0x1000..DATA + 0x4000).chain(STACK - 0x9000..STACK).step_by(8) {
            assert_eq!(g.read64(at), h.read64(at), "{at:#x} {code:02x?}");
        }
    }
}

#[test]
fn whatever_runs_can_be_stopped() {
    let mut random = Random::new(&[0x0dd0_1234_5678_9abc]);
    for n in 0..100 {
        let code = program(&mut random, n % 2 == 0);
        let (g, mut v) = guest(&code, random.bits());
        if n % 4 == 3 {
            // The same in real mode.
            let s = v.registers_mut(Groups::ALL);
            *s = x86::CpuState::reset(0);
            s.seg[1].base = CODE;
            s.rip = 0;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(3));
                g.requests.store(1, SeqCst);
            });
            for _ in 0..1_000_000 {
                match g.enter(&mut v) {
                    Exit::Interrupted => break,
                    Exit::Pio(pio) => v.registers_mut(Groups::ALL).rip += pio.len as u64,
                    Exit::Shutdown | Exit::Hlt { .. } => break,
                    Exit::NestedPageFault { .. } => break,
                    _ => v.registers_mut(Groups::ALL).rip += 2,
                }
            }
        });
    }
}
