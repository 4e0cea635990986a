//! Which changes there are, and the order in which they are drawn.
use std::{ops::Range, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Subject;
use crate::process::{cargo, output};

/// What the order of the mutants is drawn with.
pub const SEED: u64 = 2007;

/// A place of a file: a line and a column, from 1 on.
type Place = (usize, usize);

/// A change: `text` between two places of a file.
pub struct Mutant {
    pub name: String,
    pub file: String,
    /// From where on, up to where.
    span: (Place, Place),
    /// The function that it is in, with its attributes.
    function: Option<(Place, Place)>,
    pub text: String,
}

impl Mutant {
    /// What is changed in the file's text, in bytes.
    pub fn place(&self, text: &str) -> Result<Range<usize>> {
        range(text, self.span).context("a place outside of its file")
    }

    /// The function around it, in bytes.
    pub fn function(&self, text: &str) -> Option<Range<usize>> {
        range(text, self.function?)
    }

    /// The whole file with the change.
    pub fn apply(&self, old: &str) -> Result<String> {
        let place = self.place(old)?;
        Ok([&old[..place.start], &self.text, &old[place.end..]].concat())
    }
}

fn range(text: &str, (from, to): (Place, Place)) -> Option<Range<usize>> {
    let offset = |(line, column): Place| {
        let start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
        let within = text.get(start..)?.char_indices().nth(column.checked_sub(1)?)?.0;
        Some(start + within)
    };
    Some(offset(from)?..offset(to)?)
}

/// All mutants of a crate, in the order of their names.
pub fn list(tree: &Path, subject: &Subject) -> Result<Vec<Mutant>> {
    let mut command = cargo();
    command.args(["mutants", "--list", "--json", "--package", &format!("rekvm-{}", subject.name), "--dir"]).arg(tree);
    subject.tests.iter().for_each(|file| {
        command.args(["--exclude", file]);
    });
    let json: Value = serde_json::from_str(&output(&mut command)?)?;
    let mut mutants = Vec::new();
    for m in json.as_array().context("a list of mutants")? {
        let text = |key: &str| m[key].as_str().map(String::from).with_context(|| format!("no {key} in {m}"));
        let span = span(&m["span"]).with_context(|| format!("no place in {m}"))?;
        let function = self::span(&m["function"]["span"]);
        mutants.push(Mutant { name: text("name")?, file: text("file")?, span, function, text: text("replacement")? });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn span(json: &Value) -> Option<(Place, Place)> {
    let place = |end: &str| {
        let number = |what: &str| json[end][what].as_u64().and_then(|n| usize::try_from(n).ok());
        number("line").zip(number("column"))
    };
    place("start").zip(place("end"))
}

/// Fisher and Yates' shuffle with Vigna's splitmix64.
pub fn shuffled(mut mutants: Vec<Mutant>) -> Vec<Mutant> {
    let mut state = SEED;
    for i in (1..mutants.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mutants.swap(i, ((z ^ z >> 31) % (i as u64 + 1)) as usize);
    }
    mutants
}
