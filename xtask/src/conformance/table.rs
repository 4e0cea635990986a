//! How results are shown: a line for each case as it ends, or all targets side by side, then failures in full, then counts.
use std::collections::BTreeMap;

use super::{
    Run,
    suite::{Case, FAIL},
};

/// One case, as it ends.
pub fn line(case: &Case) {
    let Case { name, word, rows, note, .. } = case;
    let seconds = case.milliseconds as f64 / 1000.;
    println!("{}", format!("{word:<8}{name:<52} {rows:<16}{seconds:>7.2} s  {note}").trim_end());
}

/// All runs side by side, by case.
pub fn table(runs: &[Run]) {
    let mut order: Vec<&str> = Vec::new();
    let mut words: BTreeMap<(&str, usize), &str> = BTreeMap::new();
    for (column, run) in runs.iter().enumerate() {
        for case in &run.results.cases {
            if !order.contains(&case.name.as_str()) {
                order.push(&case.name);
            }
            words.insert((&case.name, column), &case.word);
        }
    }
    let wide = order.iter().map(|name| name.len()).max().unwrap_or(0).max(4);
    let heads: Vec<_> = runs.iter().map(|run| run.target.name()).collect();
    println!("{:wide$}  {}", "case", heads.join("  "));
    for name in order {
        let mut line = format!("{name:wide$}");
        for (column, head) in heads.iter().enumerate() {
            line.push_str(&format!("  {:1$}", words.get(&(name, column)).unwrap_or(&"-"), head.len()));
        }
        println!("{}", line.trim_end());
    }
}

/// What failed, in full, and the counts.
pub fn end(runs: &[Run]) {
    for run in runs {
        let failed: Vec<_> = run.results.cases.iter().filter(|case| case.word == FAIL).collect();
        if runs.len() > 1 && !failed.is_empty() {
            println!("\n==== {}", run.target.name());
        }
        for case in failed {
            println!("\n---- {}", case.name);
            case.details.iter().for_each(|line| println!("     {line}"));
        }
    }
    println!();
    for run in runs {
        run.complaints.iter().for_each(|line| println!("{}: L1's kernel complains: {line}", run.target.name()));
    }
    runs.iter().for_each(|run| println!("{}", counts(run)));
}

/// The last line of a run.
fn counts(run: &Run) -> String {
    let results = &run.results;
    let mut line = format!(
        "{}: {} cases: {} passed, {} failed, {} failed as expected, {} not run, {} lack a capability, {} do not apply",
        run.target.name(),
        results.total.unwrap_or(0),
        results.count("pass"),
        results.count(FAIL),
        results.count("known"),
        results.count("not run"),
        results.count("lacks"),
        results.count("n/a")
    );
    if results.missing() > 0 || results.total.is_none() {
        line.push_str(&format!(", {} not reached: {}", results.missing(), run.ending));
    }
    if run.restarts > 0 {
        line.push_str(&format!("; L1 was booted again {} times", run.restarts));
    }
    line
}
