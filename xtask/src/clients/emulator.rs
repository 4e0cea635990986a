//! A QEMU that is told what to do by its monitor (QMP, on its standard input and output) while a guest runs in it. Its folder
//! holds the files that it is told to write.
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    process::{die_with_us, target_dir},
    run::read_lines,
};

/// How long an answer of the monitor may take.
const PROMPT: Duration = Duration::from_secs(120);

/// How often what cannot be waited for is looked at.
pub const POLL: Duration = Duration::from_millis(200);

/// A running QEMU; it ends with the value.
pub struct Emulator {
    child: Child,
    to: ChildStdin,
    from: Receiver<String>,
    folder: PathBuf,
    name: String,
}

impl Emulator {
    /// Starts `command` in the build directory's folder `folder`, with a console and a log there that begin with `name`.
    pub fn start(mut command: Command, folder: &str, name: &str) -> Result<Self> {
        let folder = std::path::absolute(target_dir().join(folder))?;
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join(format!("{name}.stderr")))?;
        // What an earlier run said is not this one's.
        File::create(folder.join(format!("{name}.console")))?;
        command.args(["-serial", &format!("file:{name}.console"), "-qmp", "stdio"]).current_dir(&folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = die_with_us(&mut command).spawn().context("cannot start QEMU")?;
        let (send, from) = mpsc::channel();
        let (to, output) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        read_lines(output, send);
        let mut emulator = Self { child, to, from, folder, name: name.to_owned() };
        emulator.execute("qmp_capabilities", json!({}))?;
        Ok(emulator)
    }

    /// Has the monitor do `command`, and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.to, "{line}").with_context(|| format!("QEMU is gone; see {}", self.path("stderr").display()))?;
        let end = Instant::now() + PROMPT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self
                .from
                .recv_timeout(left)
                .with_context(|| format!("no answer of QEMU's to {command}; see {}", self.path("stderr").display()))?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU does not {command}: {error}");
            }
            // Others are events.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Has the monitor do a command of the kind that people type, which says nothing unless it fails.
    pub fn human(&mut self, line: &str) -> Result<()> {
        let said = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(said.is_empty(), "QEMU does not {line}: {said}");
        Ok(())
    }

    /// Presses and releases a key.
    pub fn press(&mut self, key: &str) -> Result<()> {
        self.execute("send-key", json!({ "keys": [{ "type": "qcode", "data": key }] })).map(drop)
    }

    /// A picture of the screen, which stays in the folder as `NAME-what.png`.
    pub fn picture(&mut self, what: &str) -> Result<Vec<u8>> {
        let file = format!("{}-{what}.png", self.name);
        self.execute("screendump", json!({ "filename": file, "format": "png" }))?;
        Ok(fs::read(self.folder.join(file))?)
    }

    /// The text screen: characters and their attributes as they are at 0xb8000.
    pub fn text(&mut self) -> Result<Vec<u8>> {
        let file = format!("{}.text", self.name);
        self.execute("pmemsave", json!({ "val": 0xb8000, "size": 80 * 25 * 2, "filename": file }))?;
        Ok(fs::read(self.folder.join(file))?)
    }

    /// What the guest has said so far.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.path("console"))?).into_owned())
    }

    /// Looks with `look` until it finds something, for at most `limit`.
    pub fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended with {status} before {what}; see {}", self.path("stderr").display());
            }
            ensure!(Instant::now() < end, "waited {limit:?} for {what}; see {}", self.path("console").display());
            std::thread::sleep(POLL);
        }
    }

    /// What QEMU and its accelerator have said so far.
    pub fn errors(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.path("stderr"))?).into_owned())
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has QEMU end by itself, as it does for its users.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        let end = Instant::now() + PROMPT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "QEMU ended with {status}; see {}", self.path("stderr").display());
                return Ok(());
            }
            ensure!(Instant::now() < end, "QEMU does not quit");
            std::thread::sleep(POLL);
        }
    }

    /// A file of this QEMU's by its ending.
    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.name))
    }

    /// The folder of all its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
