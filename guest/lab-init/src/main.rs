//! The first process of the kernel that `cargo xtask lab` boots. It mounts what programs expect, loads the modules it
//! was given, runs one program, and sends what that program writes and how it ends as frames over a serial port.
//! Every second it sends a sign of life, so that a host can tell a hanging kernel from a slow program.

use std::{
    ffi::{CStr, CString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rekvm_lab_init::{ARGUMENTS, ENVIRONMENT, Frame, MODULE_DIR, MODULES, PORT};

/// What is mounted where: file system, place.
const MOUNTS: [(&CStr, &str); 7] = [
    (c"proc", "/proc"),
    (c"sysfs", "/sys"),
    (c"devtmpfs", "/dev"),
    (c"tmpfs", "/tmp"),
    (c"tmpfs", "/dev/shm"),
    (c"devpts", "/dev/pts"),
    (c"debugfs", "/sys/kernel/debug"),
];

fn main() {
    for (kind, place) in MOUNTS {
        mount(kind, place);
    }
    match Port::open() {
        Ok(port) => {
            let frame = match run(&port) {
                Ok(status) => Frame::Exit(status),
                Err(why) => Frame::Failed(why.into_bytes()),
            };
            port.send(&frame);
            port.drain();
        }
        // Nobody listens: the kernel's console is all that is left.
        Err(why) => drop(writeln!(io::stderr(), "lab: cannot open {PORT}: {why}")),
    }
    // The host ends the emulator when it has the last frame. An emulator that writes its files late needs the time.
    thread::sleep(Duration::from_secs(5));
    // SAFETY: ends this kernel, which has nothing to lose.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// All from the first frame to the last but one; the program's exit status, or why it could not be run.
fn run(port: &Port) -> Result<u8, String> {
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    port.send(&Frame::Hello(format!("{} cpus={cpus}", kernel.trim()).into_bytes()));
    let beating = port.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            beating.send(&Frame::Beat);
        }
    });
    // The shell's programs, for whoever asks for them.
    let _ = Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status();
    load_modules()?;
    port.send(&Frame::Start);
    let status = program(port)?;
    find_leaks();
    Ok(status)
}

/// Where a kernel that looks for leaks is told to, and says what it has found.
const LEAKS: &str = "/sys/kernel/debug/kmemleak";

/// Has such a kernel look, and say on its console what it has found. What is younger than some seconds it does not mind.
fn find_leaks() {
    for _ in 0..2 {
        if !fs::exists(LEAKS).unwrap_or(false) {
            return;
        }
        thread::sleep(Duration::from_secs(6));
        let _ = fs::write(LEAKS, "scan");
    }
    let found = fs::read_to_string(LEAKS).unwrap_or_default();
    // As much as the kernel's log takes.
    for line in found.lines().take(100) {
        let _ = fs::write("/dev/kmsg", line);
    }
}

fn load_modules() -> Result<(), String> {
    let list = fs::read_to_string(MODULES).map_err(|e| format!("cannot read {MODULES}: {e}"))?;
    for line in list.lines() {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let file = File::open(format!("{MODULE_DIR}/{name}")).map_err(|e| format!("cannot open {name}: {e}"))?;
        let parameters = CString::new(parameters).map_err(|_| "a module's parameters hold a zero byte")?;
        // SAFETY: the descriptor is open and the string ends with a zero.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
        if result != 0 {
            return Err(format!("cannot load {line}: {}", io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Runs the program to its end.
fn program(port: &Port) -> Result<u8, String> {
    let arguments = strings(ARGUMENTS)?;
    let (program, arguments) = arguments.split_first().ok_or("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in strings(ENVIRONMENT)? {
        let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
        command.env(name, value);
    }
    let mut child = command.spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
    let (done, readers) = mpsc::channel();
    let mut open = 0;
    if let Some(out) = child.stdout.take() {
        copy(out, Frame::Out, port, &done);
        open += 1;
    }
    if let Some(err) = child.stderr.take() {
        copy(err, Frame::Err, port, &done);
        open += 1;
    }
    let status = child.wait().map_err(|e| format!("cannot wait for {program}: {e}"))?;
    // What a process left behind still holds open is not waited for.
    for _ in 0..open {
        if readers.recv_timeout(Duration::from_secs(2)).is_err() {
            break;
        }
    }
    Ok(shell_status(status))
}

/// The exit status that a shell would show.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
    code as u8
}

/// Sends what comes out of `from` until it ends.
fn copy(mut from: impl Read + Send + 'static, frame: fn(Vec<u8>) -> Frame, port: &Port, done: &mpsc::Sender<()>) {
    let (port, done) = (port.clone(), done.clone());
    thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            port.send(&frame(buffer[..n].to_vec()));
        }
        let _ = done.send(());
    });
}

/// A file of strings that zero bytes end.
fn strings(path: &str) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

fn mount(kind: &CStr, place: &str) {
    let _ = fs::create_dir_all(place);
    let Ok(target) = CString::new(std::path::Path::new(place).as_os_str().as_bytes()) else { return };
    // SAFETY: all strings end with a zero, and none of these file systems wants data. What cannot be mounted is
    // missed by the program that needs it.
    unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

/// The serial port, one frame at a time.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PORT)?;
        // SAFETY: all bit patterns are a termios, and the calls fill and read this one only.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(file.as_raw_fd(), &mut settings) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::cfmakeraw(&mut settings);
            settings.c_cflag = settings.c_cflag & !libc::CBAUD | libc::CLOCAL | libc::B115200;
            if libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &settings) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    fn send(&self, frame: &Frame) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = file.write_all(&frame.encode());
    }

    /// Returns when all that was sent has left the port.
    fn drain(&self) {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the descriptor is open.
        unsafe { libc::tcdrain(file.as_raw_fd()) };
    }
}
