//! Tiny guests for tests: ELF files whose code is put together here, byte by byte.

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// The guest's first instruction.
pub const ENTRY: u32 = 0x10_0000;

/// 64-bit machine code, one instruction after another.
#[derive(Default, Clone)]
pub struct Code(pub Vec<u8>);

impl Code {
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn dx(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high])
    }

    /// mov dx, port; mov al, value; out dx, al
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.dx(port).raw(&[0xb0, value, 0xee])
    }

    /// mov dx, port; mov ax, value; out dx, ax
    pub fn out16(self, port: u16, value: u16) -> Self {
        let [low, high] = value.to_le_bytes();
        self.dx(port).raw(&[0x66, 0xb8, low, high, 0x66, 0xef])
    }

    /// mov dx, port; in eax, dx
    pub fn in32(self, port: u16) -> Self {
        self.dx(port).raw(&[0xed])
    }

    /// Writes a text to the serial port.
    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self = self.out8(0x3f8, byte);
        }
        self
    }

    /// ACPI soft-off.
    pub fn power_off(self) -> Self {
        self.out16(0x604, 5 << 10 | 1 << 13)
    }

    /// An interrupt table of no entries, then an undefined instruction.
    pub fn triple_fault(self) -> Self {
        // push 0; push 0; lidt [rsp]; ud2
        self.raw(&[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b])
    }

    /// cmp eax, -1; je over the triple fault that follows
    pub fn expect_all_ones(self) -> Self {
        self.raw(&[0x83, 0xf8, 0xff, 0x74, 10]).triple_fault()
    }

    /// jmp to itself
    pub fn spin(self) -> Self {
        self.raw(&[0xeb, 0xfe])
    }

    /// cli; hlt; and again, should it ever wake
    pub fn halt(self) -> Self {
        self.raw(&[0xfa, 0xf4, 0xeb, 0xfc])
    }

    /// A kernel file with this code.
    pub fn kernel(&self) -> NamedTempFile {
        let mut image = vec![0u8; 120];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, value: u64, len: usize| {
            image[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let (entry, len) = (u64::from(ENTRY), self.0.len() as u64);
        for (at, value, len) in [(18, 62, 2), (24, entry, 8), (32, 64, 8), (54, 56, 2), (56, 1, 2)] {
            put(at, value, len);
        }
        for (at, value, len) in [(64, 1, 4), (72, 120, 8), (88, entry, 8), (96, len, 8), (104, len, 8)] {
            put(at, value, len);
        }
        image.extend_from_slice(&self.0);
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        file
    }
}

/// The back end under test.
pub fn accel() -> String {
    std::env::var("REKVM_TEST_ACCEL").unwrap_or_else(|_| "soft".to_owned())
}

/// `rekvm run`; the caller adds options and says where its streams go.
pub fn command(kernel: &NamedTempFile) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rekvm"));
    command.args(["run", "--accel", &accel(), "--kernel"]).arg(kernel.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for something; panics if it takes ten seconds.
#[track_caller]
pub fn wait(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "it takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running guest that ends with its test.
pub struct Guest(Child);

impl Guest {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Deref for Guest {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
