//! A copy of the checkout that can be changed.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process::{output, root};

/// Copies what git knows of the checkout to a place where it can be changed, some files with other contents; files that are
/// the same already stay untouched.
pub fn copy_tree(tree: &Path, changed: &BTreeMap<PathBuf, String>) -> Result<()> {
    let files = output(Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()))?;
    let known = |dir: &Path, name: &str| files.lines().any(|f| Path::new(f) == dir.join(name));
    for file in files.lines() {
        let (from, to) = (root().join(file), tree.join(file));
        let new = match changed.get(Path::new(file)) {
            Some(text) => text.clone().into_bytes(),
            None => match fs::read(&from) {
                Ok(new) => new,
                Err(_) => continue,
            },
        };
        if fs::read(&to).is_ok_and(|old| old == new) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::write(&to, new).with_context(|| format!("cannot write {}", to.display()))?;
    }
    remove_unknown(tree, Path::new(""), &known)
}

/// A function of the name `name` for a copy of a crate: whether the change of this number is the one that the environment's `variable`
/// has chosen.
pub fn question(name: &str, variable: &str) -> String {
    format!(
        r#"
/// Whether change `n` is the chosen one.
#[allow(missing_docs, dead_code)]
pub fn {name}(n: usize) -> bool {{
    extern crate std;
    static CHOSEN: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("{variable}").ok()?.parse().ok()) == Some(n)
}}
"#
    )
}

/// Removes sources that the checkout no longer has: a module or a test of an older state.
fn remove_unknown(tree: &Path, dir: &Path, known: &impl Fn(&Path, &str) -> bool) -> Result<()> {
    for entry in fs::read_dir(tree.join(dir))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            remove_unknown(tree, &dir.join(&name), known)?;
        } else if name.ends_with(".rs") && !known(dir, &name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
