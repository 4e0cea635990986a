//! The run: every form with every shape, as often as asked, counted.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use iced_x86::Code;

use crate::{
    case::{BATCH, Case, Image, Outcome, end},
    compare::difference,
    generate::{Encoded, Random, Shape, encode, form, image, state},
    machine::Machine,
    native::Native,
    show,
    shrink::{both, shrink},
};

/// States in which one encoding is tried.
const STATES: usize = 8;
/// Encodings that are tried for one that a shape allows.
const ATTEMPTS: usize = 400;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often each form is executed with each shape, at least.
    pub hits: u64,
    /// How many executions there are to be in all, at least; the hits are raised until they are.
    pub executions: u64,
    /// What the random numbers begin with.
    pub seed: u64,
    /// Only forms whose name contains this.
    pub form: Option<String>,
    /// Only code of so many bits.
    pub bits: Vec<u32>,
    /// Stop after so many forms that differ.
    pub failures: usize,
    /// When to stop whatever has been reached.
    pub time: Option<Duration>,
    /// Whether to say now and then how far it is.
    pub progress: bool,
    /// In random order instead of the decoder's: for runs that are too short for all.
    pub sample: bool,
}

/// What is known of a form with a shape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Executions.
    pub hits: u64,
    /// Those that completed, on the host.
    pub completed: u64,
}

/// A difference.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Form.
    pub code: Code,
    /// Bits of the code.
    pub bits: u32,
    /// Shape.
    pub shape: Shape,
    /// The shrunk case, both outcomes, and how to see it again.
    pub report: String,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// By bits, form and shape.
    pub counts: BTreeMap<(u32, u16, Shape), Count>,
    /// What differed: the first of each form and mode.
    pub mismatches: Vec<Mismatch>,
    /// How many executions differed.
    pub different: u64,
    /// Executions.
    pub executions: u64,
    /// Whether the time ended before the forms did.
    pub cut: bool,
}

/// Both processors.
#[derive(Debug)]
pub struct Prover {
    native: Native,
    machine: Machine,
}

/// One form with one shape in one mode.
#[derive(Clone, Copy, Debug)]
struct Work {
    bits: u32,
    code: Code,
    shape: Shape,
}

impl Prover {
    /// Starts the child process and makes the software CPU. Binds this thread, and so the child, to one processor, so
    /// that RDPID has one answer.
    pub fn new() -> Result<Self> {
        let cpu = pin().context("cannot bind to a processor")?;
        let image = image(&mut Random::new(&[0]));
        let native = Native::new(&image).context("cannot start the child process")?;
        let machine = Machine::new(&image, cpu)?;
        Ok(Self { native, machine })
    }

    /// Runs.
    pub fn run(&mut self, options: &Options) -> Result<Summary> {
        let mut summary = Summary::default();
        let start = Instant::now();
        let mut work = self.work(options);
        if options.sample {
            let mut random = Random::new(&[options.seed, 1]);
            for i in (1..work.len()).rev() {
                work.swap(i, random.below(i as u64 + 1) as usize);
            }
        }
        let wanted = options.hits.max(options.executions.div_ceil(work.len().max(1) as u64));
        let mut shown = Instant::now();
        for (i, &what) in work.iter().enumerate() {
            if options.time.is_some_and(|time| start.elapsed() >= time) {
                summary.cut = true;
                break;
            }
            self.prove(what, wanted, options, &mut summary)?;
            if options.progress && shown.elapsed() >= Duration::from_secs(5) {
                shown = Instant::now();
                eprintln!(
                    "prove-cpu: {} of {} forms and shapes, {} executions, {} different, {:.0?}: {}-bit {:?}",
                    i + 1,
                    work.len(),
                    summary.executions,
                    summary.different,
                    start.elapsed(),
                    what.bits,
                    what.code
                );
            }
            if summary.mismatches.len() >= options.failures {
                summary.cut = i + 1 < work.len();
                break;
            }
        }
        Ok(summary)
    }

    fn work(&self, options: &Options) -> Vec<Work> {
        let mut work = Vec::new();
        for &bits in &options.bits {
            for code in form::forms(bits, self.machine.features()) {
                let name = format!("{code:?}");
                let chosen = options.form.as_ref().is_none_or(|part| match part.strip_prefix('=') {
                    Some(whole) => name.eq_ignore_ascii_case(whole),
                    None => name.to_lowercase().contains(&part.to_lowercase()),
                });
                if chosen && form::excluded(code).is_none() {
                    work.extend(form::shapes(code, bits).into_iter().map(|shape| Work { bits, code, shape }));
                }
            }
        }
        work
    }

    /// Executes `what` at least `wanted` times.
    fn prove(&mut self, what: Work, wanted: u64, options: &Options, summary: &mut Summary) -> Result<()> {
        let Work { bits, code, shape } = what;
        let mut random = Random::new(&[options.seed, bits as u64, code as u64, shape as u64]);
        let mut count = Count::default();
        let mut ours = vec![Outcome::default(); BATCH];
        while count.hits < wanted {
            let data = image(&mut random);
            let mut encodings: Vec<Encoded> = Vec::new();
            let mut cases: Vec<Case> = Vec::new();
            let full = BATCH.min((wanted - count.hits) as usize);
            for _ in 0..ATTEMPTS {
                if cases.len() >= full {
                    break;
                }
                let Some(encoded) = encode(code, bits, shape, &mut random) else { continue };
                for _ in 0..STATES.min(full - cases.len()) {
                    cases.push(state(&encoded, &data, &mut random));
                    encodings.push(encoded.clone());
                }
            }
            if cases.is_empty() {
                break;
            }
            self.native.begin(&data, &cases)?;
            self.machine.run(&data, &cases, &mut ours);
            let natives = self.native.finish()?.to_vec();
            for (i, case) in cases.iter().enumerate() {
                let insn = &encodings[i].insn;
                let [mut theirs, mut mine] = [natives[i].clone(), ours[i].clone()];
                if theirs.end == end::DIED {
                    // Those behind the one that killed it are well.
                    [theirs, mine] = both(&mut self.native, &mut self.machine, &data, case)?;
                }
                count.hits += 1;
                count.completed += (theirs.end == end::COMPLETED) as u64;
                if difference(case, insn, &data, &theirs, &mine).is_some() {
                    summary.different += 1;
                    let known = summary.mismatches.iter().any(|m| (m.code, m.bits) == (code, bits));
                    if !known {
                        let report = self.explain(what, &encodings[i], &data, case, options)?;
                        if options.progress {
                            eprintln!("prove-cpu: different: {bits}-bit {code:?}, {shape}: {report}");
                        }
                        summary.mismatches.push(Mismatch { code, bits, shape, report });
                    }
                }
            }
        }
        summary.executions += count.hits;
        summary.counts.insert((bits, code as u16, shape), count);
        Ok(())
    }

    fn explain(
        &mut self,
        what: Work,
        encoded: &Encoded,
        data: &Image,
        case: &Case,
        options: &Options,
    ) -> Result<String> {
        let insn = &encoded.insn;
        let [theirs, _] = both(&mut self.native, &mut self.machine, data, case)?;
        let (small, image) = if theirs.end == end::DIED {
            // Each try would take its time to die.
            (case.clone(), data.clone())
        } else {
            shrink(&mut self.native, &mut self.machine, insn, data, case)?
        };
        self.machine.left = None;
        let [theirs, ours] = both(&mut self.native, &mut self.machine, &image, &small)?;
        let what_differs =
            difference(&small, insn, &image, &theirs, &ours).unwrap_or_else(|| "differs only now and then".to_string());
        let mut report = format!("{what_differs}\n{}", show::report(&small, insn, &image, &theirs, &ours));
        if let Some(left) = &self.machine.left {
            report += &format!("  the software CPU left with {left:?}\n");
        }
        report += &format!(
            "  again: cargo xtask prove-cpu --seed {:#x} --bits {} --form ={:?} --hits {}\n",
            options.seed, what.bits, what.code, options.hits
        );
        Ok(report)
    }
}

/// Binds this thread to the processor that it is on; returns its number as RDPID shows it.
fn pin() -> std::io::Result<u32> {
    let (mut cpu, mut node) = (0u32, 0u32);
    // SAFETY: the set is valid.
    unsafe {
        libc::syscall(libc::SYS_getcpu, &mut cpu, &mut node, 0);
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(node << 12 | cpu)
}

/// The forms that are left out, with their reasons.
pub fn exclusions(prover: &Prover, bits: &[u32]) -> Vec<(u32, Code, &'static str)> {
    bits.iter()
        .flat_map(|&bits| form::forms(bits, prover.machine.features()).into_iter().map(move |code| (bits, code)))
        .filter_map(|(bits, code)| form::excluded(code).map(|reason| (bits, code, reason)))
        .collect()
}

/// The name of a form.
pub fn form_name(code: u16) -> String {
    Code::values().nth(code as usize).map_or_else(|| code.to_string(), |code| format!("{code:?}"))
}

/// Whether the host's processor and kernel have what the trampoline needs.
pub fn host_can() -> bool {
    // HWCAP2_FSGSBASE.
    // SAFETY: only asks.
    let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
    fsgsbase && std::arch::is_x86_feature_detected!("avx") && std::arch::is_x86_feature_detected!("xsave")
}

/// A seed that nobody knows before.
pub fn chance() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}

/// The host's processor by name.
pub fn host() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        cpuinfo.lines().find(|l| l.starts_with(key)).and_then(|l| l.split(':').nth(1)).unwrap_or("").trim().to_string()
    };
    format!(
        "{} {} (family {}, model {})",
        value("vendor_id"),
        value("model name"),
        value("cpu family"),
        value("model\t")
    )
}
