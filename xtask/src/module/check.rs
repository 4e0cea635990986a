//! `cargo xtask module --check`: the module comes and goes in the lab. It is refused where it has no business, with one clear
//! line in the kernel's log and an error number that says the same; it is loaded and unloaded again and again, with nested and
//! with shadow paging and with guests in between, and after clients were killed at any moment; and each time it leaves nothing
//! behind.
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{NOTHING_LEFT, for_lab_built};
use crate::{
    guest,
    lab::{self, Cpu, Job, Stream},
};

/// Calls of core's panic functions in the module. There may be fewer, never more.
const MOST_PANICS: usize = 7;

/// How often it is loaded and unloaded.
const ROUNDS: usize = 20;

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
round=0
while [ $round -lt $0 ]; do
    insmod /lab/rekvm.ko $paging=$((round % 2)) || fail "it was not loaded"
    [ -c /dev/kvm ] || fail "there is no /dev/kvm"
    if [ $((round % 4)) -lt 2 ]; then
        /lab/conformance run --on device:/dev/kvm --as $place --slow $slow --filter state/ > /tmp/said || { cat /tmp/said; fail "guests"; }
    fi
    rmmod rekvm || fail "it does not go"
    [ -e /dev/kvm ] && fail "/dev/kvm stays"
    round=$((round + 1))
done
echo "loaded and unloaded $round times"
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

/// See the module. `cpu` is L1's.
pub fn check(cpu: Cpu) -> Result<()> {
    let built = for_lab_built()?;
    ensure!(
        built.look.panics <= MOST_PANICS,
        "the module has {} calls of core's panic functions, more than {MOST_PANICS}",
        built.look.panics
    );
    let suite = guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &["--no-default-features"])?;
    let job = |script: &str, module: &str| {
        let words = ["l1:/bin/busybox", "sh", "-c", script, &ROUNDS.to_string()].map(str::to_owned);
        let mut job = Job::new(cpu, words.into());
        job.module = module.to_owned();
        job.timeout = LIMIT;
        job.environment = environment(cpu);
        job.files = vec![(built.module.clone(), "/lab/rekvm.ko".into()), (suite.clone(), "/lab/conformance".into())];
        job
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
