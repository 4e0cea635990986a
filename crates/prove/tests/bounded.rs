//! Every form with every operand shape, a few times each, with other random numbers each time.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use prove::{
    machine::host_is_amd,
    run::{Options, Prover, chance},
};

#[test]
fn the_software_cpu_does_what_the_processor_does() {
    if !prove::run::host_can() {
        println!("skipped: the comparison needs a host with XSAVE, AVX and FSGSBASE");
        return;
    }
    if !host_is_amd() {
        println!("skipped: where Intel's processors differ from AMD's has not been gone through yet");
        return;
    }
    let seed = std::env::var("REKVM_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(chance);
    println!("seed {seed:#x}");
    let summary = Prover::new()
        .unwrap()
        .run(&Options {
            hits: 8,
            executions: 0,
            seed,
            form: None,
            bits: vec![64, 32, 16],
            failures: 5,
            time: None,
            progress: false,
            sample: false,
        })
        .unwrap();
    let reports: Vec<String> =
        summary.mismatches.iter().map(|m| format!("{:?}, {}-bit, {}: {}", m.code, m.bits, m.shape, m.report)).collect();
    assert!(reports.is_empty(), "seed {seed:#x}\n{}", reports.join("\n"));
    assert!(summary.executions > 300_000, "only {} executions", summary.executions);
    let few: Vec<_> = summary.counts.iter().filter(|(_, count)| count.hits < 8).collect();
    assert!(few.is_empty(), "executed too seldom: {few:?}");
}
