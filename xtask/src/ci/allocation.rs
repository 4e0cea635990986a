//! No infallible allocation in the crates that a kernel loads: a call that ends the kernel where there is no memory is refused.
//! clippy finds them by the list in `xtask/lints`. Those that only allocate when there is no room are fine where room has
//! been reserved just before, or where a comment above says why there is room.
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{cargo, output, root};

/// The crates with an allocator. The others cannot even name one.
const CRATES: [&str; 4] = ["rekvm-platform", "rekvm-mmu", "rekvm-irqchip", "rekvm-hv"];

/// Lines above a call in which room may have been reserved.
const ABOVE: usize = 12;

/// See the module.
pub(super) fn check() -> Result<()> {
    let mut command = cargo();
    command.args(["clippy", "--quiet", "--message-format=json", "--lib", "--no-deps"]);
    CRATES.iter().for_each(|name| {
        command.args(["--package", name]);
    });
    command.args(["--", "-W", "clippy::disallowed_methods", "-W", "clippy::disallowed_types"]);
    command.args(["-W", "clippy::disallowed_macros"]).env("CLIPPY_CONF_DIR", root().join("xtask/lints"));
    let mut found = Vec::new();
    for line in output(&mut command)?.lines() {
        let message: Value = serde_json::from_str(line)?;
        let message = &message["message"];
        if !message["code"]["code"].as_str().is_some_and(|code| code.starts_with("clippy::disallowed")) {
            continue;
        }
        let span = &message["spans"][0];
        let (file, line) =
            (span["file_name"].as_str().context("a file")?, span["line_start"].as_u64().context("a line")?);
        let notes = message["children"].to_string();
        if !(notes.contains("try_reserve first") && has_room(file, line as usize)?) {
            found.push(format!("{file}:{line}: {}", message["message"].as_str().unwrap_or_default()));
        }
    }
    if !found.is_empty() {
        bail!("these end the kernel when there is no memory:\n{}", found.join("\n"));
    }
    Ok(())
}

fn has_room(file: &str, line: usize) -> Result<bool> {
    let text = fs::read_to_string(root().join(file))?;
    let above: Vec<_> = text.lines().take(line.saturating_sub(1)).collect();
    let near = above.iter().rev().take(ABOVE).any(|line| line.contains("try_reserve"));
    Ok(near || above.iter().rev().take_while(|l| l.trim_start().starts_with("//")).any(|line| line.contains("room")))
}
