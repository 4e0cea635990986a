//! Time that a guest uses is told as a guest's (row A02).
use iced_x86::code_asm::*;

use crate::{
    Device,
    guest::{Machine, Mode},
    runner::{Case, Target, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[case("a-guests-time-is-accounted-as-a-guests", "A02", accounted)
    .inapplicable(Target::SOFT, "what the software CPU uses is the process's own time")];

/// How many ticks of the kernel's clock have to be seen.
const TICKS: u64 = 5;
/// Within so many rounds, each of some milliseconds at least.
const ROUNDS: u32 = 2000;

fn accounted(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        let (mut round, mut again) = (a.create_label(), a.create_label());
        a.set_label(&mut round)?;
        a.mov(ecx, 3_000_000)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.out(0x80, al)?;
        a.jmp(round)
    });
    let live = m.start(device);
    let before = times();
    for _ in 0..ROUNDS {
        assert!(matches!(live.vcpu.run(), Exit::Out { port: 0x80, .. }));
        if times().guest >= before.guest + TICKS {
            break;
        }
    }
    let after = times();
    let (guest, user) = (after.guest - before.guest, after.user - before.user);
    assert!(guest >= TICKS, "{guest} ticks are accounted to the guest");
    // The kernel scales user time, and not a guest's, to what its scheduler has measured: they differ by a tick or two.
    assert!(user >= guest / 2, "a guest's time is user time too: {user} ticks, {guest} of them a guest's");
}

/// Processor time of this process, in ticks.
struct Times {
    user: u64,
    guest: u64,
}

/// As proc(5) has them in /proc/PID/stat: fields 14 and 43; what follows the name begins with field 3.
fn times() -> Times {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let field = |n: usize| fields.split(' ').nth(n - 3).and_then(|f| f.trim().parse().ok()).expect("a number");
    Times { user: field(14), guest: field(43) }
}
