//! Many changes in one build: the body of each function that has some stands once as it is and once with each of them, and
//! the environment says which one runs. What does not compile is taken out again, until the rest does.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Bench, list::Mutant, question};

/// The environment variable that says which change runs: its number.
pub const CHOSEN: &str = "REKVM_MUTANT";

/// Compilers tell errors of a kind only when there are none of those before; so often it is asked at most.
const ROUNDS: usize = 20;

/// Plants as many of the mutants as compile, and says which.
pub fn plant(bench: &Bench, mutants: &[Mutant]) -> Result<BTreeSet<usize>> {
    let mut by_file = BTreeMap::<&str, Vec<usize>>::new();
    for (n, mutant) in mutants.iter().enumerate() {
        by_file.entry(&mutant.file).or_default().push(n);
    }
    let lib = PathBuf::from(format!("crates/{}/src/lib.rs", bench.subject.name));
    let mut out = BTreeSet::new();
    for round in 0..ROUNDS {
        let (mut lines, mut changed) = (BTreeMap::new(), BTreeMap::new());
        for (file, numbers) in &by_file {
            let text = fs::read_to_string(crate::process::root().join(file))?;
            let wanted = numbers.iter().copied().filter(|n| !out.contains(n)).collect::<Vec<_>>();
            let (new, places) = file_with(&text, mutants, &wanted)?;
            changed.insert(PathBuf::from(file), new);
            lines.insert(*file, places);
        }
        let old = match changed.remove(&lib) {
            Some(text) => text,
            None => fs::read_to_string(crate::process::root().join(&lib))?,
        };
        changed.insert(lib.clone(), old + &question("planted", CHOSEN));
        bench.reset(&changed)?;
        let errors = errors(bench)?;
        if errors.is_empty() {
            return Ok(lines.into_values().flat_map(BTreeMap::into_keys).collect());
        }
        let before = out.len();
        for (file, line) in &errors {
            let places = lines.get(file.as_str()).into_iter().flatten();
            out.extend(places.filter(|(_, lines)| lines.contains(line)).map(|(n, _)| *n));
        }
        if out.len() == before {
            // An error where nothing is changed comes from a change somewhere in the same file.
            out.extend(errors.iter().filter_map(|(file, _)| lines.get(file.as_str())).flat_map(BTreeMap::keys));
        }
        let wrong = out.len() - before;
        eprintln!("xtask: {wrong} of {} changes do not compile beside the others (round {})", mutants.len(), round + 1);
        if wrong == 0 {
            bail!("what is planted does not compile, and it is not clear why: {errors:?}");
        }
    }
    bail!("what is planted does not compile after {ROUNDS} rounds")
}

/// The file with those of `wanted` that are in bodies of functions, and the lines in which each of them stands.
fn file_with(text: &str, mutants: &[Mutant], wanted: &[usize]) -> Result<(String, BTreeMap<usize, Range<usize>>)> {
    // Bodies, and what is changed in each.
    let mut bodies = BTreeMap::<(usize, usize), Vec<(usize, Range<usize>)>>::new();
    for &n in wanted {
        let place = mutants[n].place(text)?;
        let Some(body) = mutants[n].function(text).and_then(|function| body(text, function)) else { continue };
        if body.start < place.start && place.end < body.end {
            bodies.entry((body.start, body.end)).or_default().push((n, place));
        }
    }
    let (mut new, mut lines, mut done) = (String::new(), BTreeMap::new(), 0);
    for ((start, end), changes) in bodies {
        // One inside of another function's body: that one's copies have it.
        if start < done {
            continue;
        }
        new += &text[done..start];
        new += "{ ";
        for (n, place) in changes {
            let first = new.matches('\n').count() + 1;
            let parts = [&text[start..place.start], &mutants[n].text, &text[place.end..end]];
            new += &format!("if crate::planted({n}) {} else ", parts.concat());
            lines.insert(n, first..new.matches('\n').count() + 1);
            // The next begins on a line of its own, so that an error has one change that it belongs to.
            new += "\n";
        }
        new += &text[start..end];
        new += " }";
        done = end;
    }
    Ok((new + &text[done..], lines))
}

/// The body of a function, with its braces.
fn body(text: &str, function: Range<usize>) -> Option<Range<usize>> {
    let mut at = function.start;
    for line in text[function.clone()].split_inclusive('\n') {
        let code = line.trim_start();
        // Documentation may have braces.
        if !code.starts_with("//") && !code.starts_with("#[") {
            break;
        }
        at += line.len();
    }
    Some(at + text[at..function.end].find('{')?..function.end)
}

/// Files and lines in which the compiler finds errors.
fn errors(bench: &Bench) -> Result<Vec<(String, usize)>> {
    let package = format!("rekvm-{}", bench.subject.name);
    let out = bench
        .cargo("cargo")
        .args(["check", "--lib", "--message-format=json", "--quiet", "--package", &package])
        .output()
        .context("cannot start cargo")?;
    let mut errors = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let message = &message["message"];
        if message["level"] != "error" {
            continue;
        }
        for span in message["spans"].as_array().into_iter().flatten().filter(|span| span["is_primary"] == true) {
            let place = span["file_name"].as_str().zip(span["line_start"].as_u64());
            errors.extend(place.map(|(file, line)| (file.to_owned(), usize::try_from(line).unwrap_or(0))));
        }
    }
    if errors.is_empty() && !out.status.success() {
        bail!("the crate does not compile: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_begins_behind_documentation_and_signature() {
        let text = "/// {\n#[inline]\nfn f<const N: usize>(x: u8) -> u8 {\n    x + 1\n}\n";
        let body = body(text, 0..text.len() - 1).unwrap();
        assert_eq!(&text[body], "{\n    x + 1\n}");
    }
}
