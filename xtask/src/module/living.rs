//! A host that lives on while guests run, as a part of `cargo xtask module --check`: one of its two processors is taken off and put on
//! again (row D02), it sleeps and wakes (D03), and its memory management pages out, merges and moves what guests use (B12). The guests
//! are those of the conformance suite, which say themselves whether all is well with them.
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    guest::{Kind, deb, modules},
    lab::Job,
};

/// What is done to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A processor goes and comes.
    Processors,
    /// Suspend to RAM, or what the kernel has of it.
    Sleep,
    /// Swap, merging and compaction.
    Memory,
    /// It looks at statistics, and is short of memory.
    Statistics,
    /// Nothing, but its clients are hostile.
    Random,
}

impl What {
    fn script(self) -> &'static str {
        match self {
            Self::Processors => PROCESSORS,
            Self::Sleep => SLEEP,
            Self::Memory => MEMORY,
            Self::Statistics => STATISTICS,
            Self::Random => RANDOM,
        }
    }
}

/// What all of them begin with: the module `$0` has been loaded, and guests run in the background until `enough` says so.
const GUESTS: &str = r#"
fail() { echo "failed: $1"; dmesg | tail -n 20; exit 1; }
# The console is to have what the module says when it goes.
dmesg -n 7
: > /tmp/rounds
guests() {
    while [ ! -e /tmp/enough ]; do
        /lab/conformance run --on device:/dev/kvm --as $place --slow $slow "$@" > /tmp/said 2>&1 || { cp /tmp/said /tmp/failed; break; }
        echo >> /tmp/rounds
    done
}
enough() {
    touch /tmp/enough
    wait
    [ ! -e /tmp/failed ] || { cat /tmp/failed; fail "guests"; }
    [ -s /tmp/rounds ] || fail "no guest has come to its end"
}
gone() {
    [ $0 = rekvm ] || exit 0
    rmmod rekvm || fail "it does not go"
}
"#;

const PROCESSORS: &str = r#"
online=/sys/devices/system/cpu/cpu1/online
guests --filter host/smp/ &
times=0
while [ $times -lt $rounds ]; do
    echo 0 > $online || fail "the processor stays"
    [ $(cat $online) = 0 ] || fail "the processor is still there"
    usleep $((times % 4 * 100000))
    echo 1 > $online || fail "the processor does not come back"
    usleep 250000
    times=$((times + 1))
done
enough
echo "a processor went and came $times times under running guests, $(wc -l < /tmp/rounds) rounds of them"
gone
"#;

const SLEEP: &str = r#"
state=freeze
grep -q mem /sys/power/state && state=mem && echo deep > /sys/power/mem_sleep
# Whoever freezes a process ends its KVM_RUN as a signal does: these expect it.
export CONFORMANCE_TIMES=300
guests --case stress/memory-goes-as-soon-as-its-slot-has --case memory/replaced-again-and-again &
times=0
while [ $times -lt 4 ]; do
    sleep 2
    echo 0 > /sys/class/rtc/rtc0/wakealarm
    echo +3 > /sys/class/rtc/rtc0/wakealarm || fail "nothing would wake it"
    echo $state > /sys/power/state || fail "it does not sleep"
    times=$((times + 1))
done
enough
slept=$(dmesg | grep -c "PM: suspend exit")
[ $slept -eq $times ] || fail "it has slept $slept times"
echo "the host slept $times times ($state) under running guests, $(wc -l < /tmp/rounds) rounds of them"
gone
"#;

const MEMORY: &str = r#"
swapped=
if [ -e /lab/swap ]; then
    swapped="pswpout pswpin"
    for module in $(cat /lab/swap); do insmod /lab/$module || fail "$module is not loaded"; done
    echo 64M > /sys/block/zram0/disksize || fail "there is no swap device"
    mkswap /dev/zram0 > /dev/null && swapon /dev/zram0 || fail "there is no swap"
fi
ksm=/sys/kernel/mm/ksm
echo 500 > $ksm/pages_to_scan
echo 10 > $ksm/sleep_millisecs
echo 1 > $ksm/run || fail "pages are not merged"
count() { grep "^$1 " /proc/vmstat | cut -d ' ' -f 2; }
guests --filter B12 &
while [ $(wc -l < /tmp/rounds) -lt 2 ] && [ ! -e /tmp/failed ]; do
    echo 1 > /proc/sys/vm/compact_memory
    # Guests have to come to something meanwhile.
    sleep 1
done
enough
for counter in $swapped cow_ksm pgmigrate_success; do
    echo "$counter $(count $counter)"
    [ $(count $counter) -gt 0 ] || fail "$counter stays 0: the host has left the guests alone"
done
echo "the host's memory management was at work under running guests"
gone
"#;

const STATISTICS: &str = r#"
kvm=/sys/kernel/debug/kvm
[ -e $kvm/exits ] || fail "there are no statistics"
guests --filter host/smp/ &
of_one=0
recycled=0
times=0
while [ $times -lt 60 ]; do
    # Who is short of memory asks everybody.
    echo 2 > /proc/sys/vm/drop_caches
    for vm in $kvm/*-*; do
        # It may have gone meanwhile.
        exits=$(cat $vm/exits 2> /dev/null) && [ $exits -gt 0 ] && of_one=$exits
    done
    now=$(cat $kvm/mmu_recycled)
    [ $now -gt $recycled ] && recycled=$now
    usleep 100000
    times=$((times + 1))
done
enough
[ $of_one -gt 0 ] || fail "no VM has shown its exits"
[ $recycled -gt 0 ] || fail "no VM has given tables back"
[ $(cat $kvm/exits) -eq 0 ] || fail "exits of no VM are counted"
for vm in $kvm/*-*; do [ -e $vm ] && fail "statistics of no VM are shown"; done
echo "a VM told $of_one exits, $recycled tables were given back at once, $(wc -l < /tmp/rounds) rounds of guests"
gone
[ -e $kvm ] && fail "the statistics stay"
exit 0
"#;

const RANDOM: &str = r#"
guests --filter host/smp/ &
/lab/conformance random --on device:/dev/kvm --as $place --seed 1 --clients 150 || fail "random clients"
enough
tries=0
until rmmod $0 2>/dev/null; do
    [ $0 = rekvm ] || exit 0
    # Those who were killed are still going.
    [ $tries -lt 100 ] || fail "it does not go"
    usleep 100000
    tries=$((tries + 1))
done
"#;

/// Makes of `job` one that does `what`. `name` is the module's: `rekvm`, or something else for Linux's own.
pub fn job(what: What, mut job: Job, name: &str) -> Result<Job> {
    let script = [GUESTS, what.script()].concat();
    // The debug kernel has no swap.
    if what == What::Memory && !job.debug_kernel {
        job.files.extend(swap()?);
    }
    job.smp = 2;
    job.program = ["l1:/bin/busybox", "sh", "-c", &script, name].map(str::to_owned).into();
    Ok(job)
}

/// The modules of a swap device in memory, and the list of them.
fn swap() -> Result<Vec<(PathBuf, String)>> {
    let kernel = deb::kernel(Kind::Amd64)?;
    let mut files = Vec::new();
    let mut list = String::new();
    for file in modules::in_order(&kernel.modules, &["lzo-rle", "zram"])? {
        let name = file.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        list.push_str(&format!("{name}\n"));
        files.push((file, format!("/lab/{name}")));
    }
    let path = crate::process::cache().join("swap");
    std::fs::write(&path, list)?;
    files.push((path, "/lab/swap".into()));
    Ok(files)
}
