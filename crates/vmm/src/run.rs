//! `rekvm run`, from options to exit status.

use crate::choose::{Accel, ChooseError, choose};
use crate::console::{self, RawTerminal};
use crate::control::{Control, Ending};
use crate::kvm::StatsFd;
use crate::machine::{Config, Loaded, Machine, MachineError};
use crate::memory::GuestRam;
use crate::monitor::Monitor;
use crate::signals::Signals;
use crate::vcpu_thread::Vcpus;
use stats::{Group, Server, Source, Teller};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long virtual CPUs may take to stop. One in a back end that hangs never does.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Everything `rekvm run` can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The machine.
    pub config: Config,
    /// The back end.
    pub accel: Accel,
    /// How the software CPU works, if it is the back end.
    pub soft: user::device::Options,
    /// The device node.
    pub device: PathBuf,
    /// Look at the end whether the shadow tables are in order.
    pub audit: bool,
    /// Tell nothing but the back end and what went wrong.
    pub quiet: bool,
}

/// The guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No back end.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// No machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// cannot set up the console: {0}
    #[error("cannot set up the console: {0}")]
    Console(std::io::Error),
    /// cannot set up signals and threads: {0}
    #[error("cannot set up signals and threads: {0}")]
    Host(#[from] std::io::Error),
}

/// Runs a guest to its end. Must be called while the process has one thread.
///
/// # Errors
/// [`RunError`] when the guest could not be started.
pub fn run(options: &Options) -> Result<Ending, RunError> {
    console::guard_fatal_signals();
    let loaded = Loaded::new(&options.config)?;
    let back_end = choose(options.accel, options.soft, &options.device)?;
    console::say(format_args!("back end: {}", back_end.description));
    let signals = Signals::new()?;
    let control = Arc::new(Control::new()?);
    let Machine { vm, board, vcpus, com1, stats } = Machine::build(loaded, &back_end, &control)?;
    // Statistics are no reason not to run.
    let server = Server::start(Teller::new(back_end.description, look(stats, board.ram.clone())))
        .inspect_err(|error| console::say(format_args!("no statistics: {error}")))
        .ok();

    let on_terminal = console::is_foreground_terminal();
    if on_terminal && !options.quiet {
        console::say(format_args!("{}", console::HELP));
    }
    let raw = if on_terminal { Some(RawTerminal::enable().map_err(RunError::Console)?) } else { None };
    let vcpus = Vcpus::start(vcpus, &board)?;
    // A terminal in the background must not be read: that would stop the process.
    let input = on_terminal || !std::io::IsTerminal::is_terminal(&std::io::stdin());
    let terminal = on_terminal;
    Monitor { control: &control, com1: &com1, signals: &signals, terminal, input }.run();

    let stopped = vcpus.stop(STOP_PATIENCE);
    drop(raw);
    drop(server);
    if !stopped {
        console::say(format_args!("a virtual CPU does not stop; leaving it behind"));
    }
    if options.audit {
        match vm.audit() {
            Some(Ok(what)) => console::say(format_args!("audit: in order: {what}")),
            Some(Err(what)) => return Ok(Ending::Hypervisor(format!("audit: {what}"))),
            None => console::say(format_args!("audit: the back end has no shadow tables")),
        }
    }
    Ok(control.ending().unwrap_or_else(|| Ending::Host("no reason is known".to_owned())))
}

/// Reads `sources`, or says why there are none. `ram` stays mapped as long as whoever looks holds descriptors of the VM.
fn look(
    sources: Result<Vec<Source<StatsFd>>, String>,
    ram: Arc<GuestRam>,
) -> impl Fn() -> Result<Vec<Group>, String> + Send + 'static {
    move || {
        let _ = &ram;
        let sources = sources.as_ref().map_err(Clone::clone)?;
        sources.iter().map(Source::group).collect::<Result<_, _>>().map_err(|error| error.to_string())
    }
}

/// Tells the user how it ended, where that is not plain.
pub fn tell(ending: &Ending, quiet: bool) {
    match ending {
        Ending::PowerOff | Ending::Quit if quiet => {}
        Ending::PowerOff => console::say(format_args!("the guest switched itself off")),
        Ending::Quit => console::say_below(format_args!("ended by the escape key")),
        Ending::Reset if quiet => {}
        Ending::Reset => console::say(format_args!("the guest asked for a reset")),
        Ending::Signal(number) => console::say_below(format_args!("ended by signal {number}")),
        Ending::Crash(what) => console::say_below(format_args!("the guest crashed: {what}")),
        Ending::Hypervisor(what) => console::say_below(format_args!("the back end cannot run the guest: {what}")),
        Ending::Host(what) => console::say_below(format_args!("{what}")),
    }
}
