//! `cargo xtask module --check`: the module comes and goes in the lab. It is refused where it has no business, with one clear
//! line in the kernel's log and an error number that says the same; it is loaded and unloaded a hundred times, with nested and
//! with shadow paging and with guests in between, and after clients were killed at any moment; and each time it leaves nothing
//! behind. The rest is a host that lives on meanwhile ([`living`]).
use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::{
    NOTHING_LEFT, for_lab_built,
    living::{self, What},
};
use crate::{
    guest,
    lab::{self, Cpu, Job, Stream},
};

/// A part of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Every part.
    All,
    /// It is refused, and comes and goes.
    Loading,
    /// A processor of the host goes and comes under running guests.
    Processors,
    /// The host sleeps under running guests.
    Sleep,
    /// The host pages out, merges and moves what guests use.
    Memory,
    /// Each allocation of the module's fails in turn.
    Scarce,
    /// Statistics are shown, and tables given back to a host that is short of memory.
    Statistics,
    /// Clients that call whatever comes to their mind.
    Random,
}

/// Calls of core's panic functions in the module. There may be fewer, never more.
const MOST_PANICS: usize = 7;

/// How often it is loaded and unloaded, every fifth time with guests in between.
const ROUNDS: usize = 100;

/// How long all of it may take. Bochs is slow.
const LIMIT: Duration = Duration::from_secs(3600);

/// In L1 with Linux's module loaded, which is called `$linux`. `$paging` is our parameter that chooses between nested and shadow
/// paging, `$place` what the conformance suite takes this for, and `$slow` by how much it stretches its limits.
const COMES_AND_GOES: &str = r#"
fail() { echo "failed: $1"; dmesg | tail -n 12; exit 1; }
dmesg -n 7
insmod /lab/rekvm.ko 2>/tmp/refused && fail "it was loaded beside Linux's KVM"
grep -q "resource busy" /tmp/refused || fail "another error than EBUSY: $(cat /tmp/refused)"
dmesg | grep -q "rekvm: not loaded: " || fail "the kernel's log does not say why it was refused"
rmmod $linux && rmmod kvm || fail "Linux's KVM stays"
# KiB of the kernel's slabs, and of all memory that is in use, when nothing is cached. Tens of MiB of free pages stand in the lists
# that each processor has of its own, which are not counted as free.
slab() { awk '/^SUnreclaim:/ { print $2 }' /proc/meminfo; }
used() { awk '/^MemTotal:/ { used += $2 } /^MemFree:/ { used -= $2 } /^ *count:/ { used -= 4 * $2 } END { print used }' /proc/meminfo /proc/zoneinfo; }
settled() { echo 3 > /proc/sys/vm/drop_caches; sleep 1; echo 3 > /proc/sys/vm/drop_caches; }
round=0
while [ $round -lt $0 ]; do
    insmod /lab/rekvm.ko $paging=$((round % 2)) || fail "it was not loaded"
    [ -c /dev/kvm ] || fail "there is no /dev/kvm"
    if [ $((round % 5)) -eq 0 ]; then
        /lab/conformance run --on device:/dev/kvm --as $place --slow $slow --filter state/ > /tmp/said || { cat /tmp/said; fail "guests"; }
    fi
    rmmod rekvm || fail "it does not go"
    [ -e /dev/kvm ] && fail "/dev/kvm stays"
    round=$((round + 1))
    # What the first rounds leave in caches of the kernel's stays there.
    if [ $round -eq 20 ]; then settled; slab=$(slab); used=$(used); fi
done
settled
echo "loaded and unloaded $round times; the kernel's slabs went from $slab to $(slab) KiB, what is in use from $used to $(used) KiB"
[ $(slab) -le $((slab + 64)) ] || fail "slabs grow"
# Less than a page each time.
[ $(used) -le $((used + 256)) ] || fail "memory is lost"
insmod /lab/rekvm.ko || fail "it was not loaded"
killed=0
while [ $killed -lt 12 ]; do
    /lab/conformance run --on device:/dev/kvm --as $place --slow $slow --filter host/smp/ > /dev/null 2>&1 &
    usleep $((150000 * killed + 100000))
    killall -9 exe conformance 2>/dev/null
    wait
    killed=$((killed + 1))
done
tries=0
until rmmod rekvm 2>/dev/null; do
    # Those who were killed are still going.
    [ $tries -lt 100 ] || fail "it does not go after its clients were killed"
    usleep 100000
    tries=$((tries + 1))
done
echo "clients were killed $killed times"
"#;

/// In L1 without virtualization.
const NOT_THERE: &str = r#"
fail() { echo "failed: $1"; dmesg | tail -n 12; exit 1; }
insmod /lab/rekvm.ko 2>/tmp/refused && fail "it was loaded without virtualization"
grep -q "not supported" /tmp/refused || fail "another error than EOPNOTSUPP: $(cat /tmp/refused)"
dmesg | grep -q "rekvm: not loaded: " || fail "the kernel's log does not say why it was refused"
[ -e /dev/kvm ] && fail "there is a /dev/kvm"
echo "refused without virtualization"
"#;

/// Runs `part` of it on our module, or on Linux's own where that makes sense. `cpu` is L1's.
pub fn check(part: Part, cpu: Cpu, linux: bool, debug_kernel: bool) -> Result<()> {
    let built = for_lab_built(debug_kernel, "")?;
    // What KASAN adds are no panics, but it keeps the compiler from seeing that some cannot happen.
    ensure!(
        debug_kernel || built.look.panics <= MOST_PANICS,
        "the module has {} calls of core's panic functions, more than {MOST_PANICS}",
        built.look.panics
    );
    let suite = guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &["--no-default-features"])?;
    let files = vec![(built.module.clone(), "/lab/rekvm.ko".into()), (suite, "/lab/conformance".into())];
    let wanted = |this: Part| part == Part::All || part == this;
    // It begins with Linux's own, which the debug kernel does not have.
    if wanted(Part::Loading) && !linux && !debug_kernel {
        loading(&files, cpu)?;
    }
    // Bochs would take hours for the rest: it does what it is asked for by name.
    if !cpu.in_qemu() && part == Part::All {
        return Ok(());
    }
    let module = built.module.to_string_lossy();
    let (module, name) = if linux { ("linux", "linux") } else { (&*module, "rekvm") };
    for (of, what) in WHAT {
        // The debug kernel's machine cannot sleep.
        if wanted(of) && !(debug_kernel && what == What::Sleep) {
            let job = living::job(what, Job { debug_kernel, files: files.clone(), ..Job::new(cpu, Vec::new()) }, name)?;
            let console = run(&Job { module: module.to_owned(), environment: environment(cpu), ..job })?;
            ensure!(linux || console.contains(NOTHING_LEFT), "the module has not given everything back: {what:?}");
        }
    }
    if wanted(Part::Scarce) && !linux {
        scarce(&files, cpu, debug_kernel)?;
    }
    Ok(())
}

const WHAT: [(Part, What); 5] = [
    (Part::Processors, What::Processors),
    (Part::Sleep, What::Sleep),
    (Part::Memory, What::Memory),
    (Part::Statistics, What::Statistics),
    (Part::Random, What::Random),
];

/// In L1 with a module whose allocations fail when they are told to; with nested and with shadow paging.
const FAILS: &str = r#"
fail() { echo "failed: $1"; dmesg | tail -n 20; exit 1; }
for npt in 1 0; do
    insmod /lab/scarce.ko npt=$npt || fail "it was not loaded"
    /lab/conformance scarce --on device:/dev/kvm --as $place --knob /sys/module/rekvm/parameters/fail_at || fail "npt=$npt"
    rmmod rekvm || fail "it does not go"
done
"#;

/// The same on a kernel that makes its own allocations fail: those of the module's that it makes itself, and those that the kernel
/// makes for it.
const FAILS_IN_KERNEL: &str = r#"
fail() { echo "failed: $1"; dmesg | tail -n 20; exit 1; }
cd /sys/kernel/debug
for of in failslab fail_page_alloc; do echo N > $of/ignore-gfp-wait; echo 0 > $of/verbose; done
echo 0 > fail_page_alloc/min-order
for npt in 1 0; do
    insmod /lab/rekvm.ko npt=$npt || fail "it was not loaded"
    /lab/conformance scarce --on device:/dev/kvm --as $place --knob /proc/thread-self/fail-nth || fail "npt=$npt"
    rmmod rekvm || fail "it does not go"
done
"#;

/// Each allocation fails in turn.
fn scarce(files: &[(PathBuf, String)], cpu: Cpu, debug_kernel: bool) -> Result<()> {
    let mut files = files.to_vec();
    files.push((for_lab_built(debug_kernel, "scarce")?.module, "/lab/scarce.ko".into()));
    for script in [Some(FAILS), debug_kernel.then_some(FAILS_IN_KERNEL)].into_iter().flatten() {
        let words = ["l1:/bin/busybox", "sh", "-c", script].map(str::to_owned);
        let (module, files, environment) = ("none".to_owned(), files.clone(), environment(cpu));
        let console = run(&Job { module, files, environment, debug_kernel, ..Job::new(cpu, words.into()) })?;
        let clean = console.matches(NOTHING_LEFT).count();
        ensure!(clean == 2, "of 2 times that the module went it has given everything back {clean} times");
    }
    Ok(())
}

fn loading(files: &[(PathBuf, String)], cpu: Cpu) -> Result<()> {
    let job = |script: &str, module: &str| {
        let words = ["l1:/bin/busybox", "sh", "-c", script, &ROUNDS.to_string()].map(str::to_owned);
        Job {
            module: module.to_owned(),
            timeout: LIMIT,
            environment: environment(cpu),
            files: files.to_vec(),
            ..Job::new(cpu, words.into())
        }
    };
    let console = run(&job(COMES_AND_GOES, "linux"))?;
    let clean = console.matches(NOTHING_LEFT).count();
    // Once more, when clients were killed.
    let times = ROUNDS + 1;
    ensure!(clean == times, "of {times} times that the module went it has given everything back {clean} times");
    run(&Job { virtualization: false, ..job(NOT_THERE, "none") })?;
    Ok(())
}

/// What the scripts have to know of L1's processor.
fn environment(cpu: Cpu) -> Vec<String> {
    let (linux, paging) = if cpu.in_qemu() { ("kvm_amd", "npt") } else { ("kvm_intel", "ept") };
    let place = cpu.name();
    vec![
        format!("linux={linux}"),
        format!("paging={paging}"),
        format!("place={place}"),
        format!("slow={}", cpu.slowness()),
        format!("rounds={}", if cpu.in_qemu() { 40 } else { 10 }),
    ]
}

/// Runs `job`; what L1's kernel said.
fn run(job: &Job) -> Result<String> {
    let outcome = lab::run(job, &mut |stream, bytes| {
        let text = String::from_utf8_lossy(bytes);
        match stream {
            Stream::Out => print!("{text}"),
            Stream::Err => eprint!("{text}"),
        }
    })?;
    outcome.clean()
}
