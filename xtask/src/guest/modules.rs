//! Kernel modules: where they are in an unpacked package, and what they need loaded before them.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::archive::read;

/// The files to load for `wanted`, in an order in which each finds what it needs. `tree` is the kernel's folder of
/// modules; a `wanted` with a slash in it is a file of its own.
pub fn in_order(tree: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut known = BTreeMap::new();
    collect(tree, &mut known)?;
    let mut order = Vec::new();
    for name in wanted {
        let file = if name.contains('/') { PathBuf::from(name) } else { find(&known, name)? };
        add(&known, file, &mut order)?;
    }
    Ok(order)
}

fn add(known: &BTreeMap<String, PathBuf>, file: PathBuf, order: &mut Vec<PathBuf>) -> Result<()> {
    if order.contains(&file) {
        return Ok(());
    }
    for name in depends(&read(&file)?) {
        add(known, find(known, &name)?, order)?;
    }
    order.push(file);
    Ok(())
}

fn find(known: &BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    known.get(&canonical(name)).cloned().with_context(|| format!("the kernel's package has no module {name}"))
}

/// Files say `-` where modules' names say `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(dir: &Path, known: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, known)?;
        } else if path.extension().is_some_and(|e| e == "ko")
            && let Some(stem) = path.file_stem()
        {
            known.insert(canonical(&stem.to_string_lossy()), path);
        }
    }
    Ok(())
}

/// What a module's `.modinfo` section says it depends on: strings of the form `depends=a,b`, each ended by a zero.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|w| w == key).map(|at| at + key.len()) else {
        return Vec::new();
    };
    let value = module[start..].split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(dir: &Path, name: &str, depends: &str) {
        fs::write(dir.join(format!("{name}.ko")), format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0"))
            .expect("written");
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let dir = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).expect("made");
        module(&dir.join("sub"), "irqbypass", "");
        module(&dir, "kvm", "irqbypass");
        module(&dir, "kvm-amd", "kvm,irqbypass");
        module(&dir, "mine", "irqbypass");
        let names = |wanted: &[&str]| -> Vec<String> {
            let order = in_order(&dir, wanted).expect("an order");
            order.iter().filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned())).collect()
        };
        assert_eq!(names(&["kvm_amd"]), ["irqbypass", "kvm", "kvm-amd"]);
        let mine = dir.join("mine.ko").to_string_lossy().into_owned();
        assert_eq!(names(&["kvm", &mine]), ["irqbypass", "kvm", "mine"]);
        assert!(in_order(&dir, &["absent"]).is_err());
        fs::remove_dir_all(dir).expect("removed");
    }
}
