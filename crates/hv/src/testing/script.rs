//! A processor that does what a test wrote down: each entry takes the next step of a script, and everything that the
//! core asks of it is noted.
use std::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    vec::Vec,
};

use mmu::AddressSpace;
use platform::{Atomic, MaySleep, OutOfMemory, scarce};
use x86::{CpuState, Features};

use super::host::Host;
use crate::backend::{Backend, BackendVcpu, Env, Event, Exit, FlushTlb, Groups, GuestDebug, Translation};

/// What one entry does to the registers, and how it ends.
pub(crate) type Entry = Box<dyn FnOnce(&mut CpuState, &Env<'_, Host>) -> Exit + Send>;

/// Whether a processor takes registers as they are.
pub(crate) type Takes = fn(&CpuState) -> bool;

/// What the core did to a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Entered,
    Injected(Event),
    Window { interrupt: bool, nmi: bool },
    Flushed(FlushTlb),
    Debug(GuestDebug),
}

/// The test's end of one vCPU.
#[derive(Default)]
pub(crate) struct Script {
    entries: Mutex<VecDeque<Entry>>,
    notes: Mutex<Vec<Note>>,
    /// The next injected event is not delivered: an exit in its middle hands it back.
    pub(crate) cut_short: Mutex<bool>,
    pub(crate) nmi_blocked: Mutex<bool>,
    /// Whether the processor takes these registers; all, if there is nothing here.
    pub(crate) takes: Mutex<Option<Takes>>,
    /// Entries so far.
    entered: Mutex<u64>,
    /// How often the core wanted FPU registers.
    fpu_looks: Mutex<u64>,
    /// Offset and ratio of the time-stamp counter.
    pub(crate) tsc: Mutex<(u64, u64)>,
}

impl Script {
    /// The next entry ends so.
    pub(crate) fn exit(&self, exit: Exit) {
        self.entry(move |_, _| exit);
    }

    pub(crate) fn entry(&self, f: impl FnOnce(&mut CpuState, &Env<'_, Host>) -> Exit + Send + 'static) {
        self.entries.lock().unwrap().push_back(Box::new(f));
    }

    fn note(&self, note: Note) {
        scarce::plenty(|| self.notes.lock().unwrap().push(note));
    }

    /// What has been noted since the last call.
    pub(crate) fn take_notes(&self) -> Vec<Note> {
        core::mem::take(&mut *self.notes.lock().unwrap())
    }

    /// How often the core wanted FPU registers.
    pub(crate) fn fpu_looks(&self) -> u64 {
        *self.fpu_looks.lock().unwrap()
    }

    /// The events injected since the last look.
    pub(crate) fn take_injected(&self) -> Vec<Event> {
        let injected = |n| if let Note::Injected(event) = n { Some(event) } else { None };
        self.take_notes().into_iter().filter_map(injected).collect()
    }
}

/// The reason code of an entry for which the script has nothing.
pub(crate) const SCRIPT_OVER: u64 = 0xdead;

/// The back end.
#[derive(Clone)]
pub(crate) struct Scripted {
    /// Tables that it says it walks stay as they are; the script does what it likes.
    pub(crate) translation: Translation,
    pub(crate) scripts: Arc<Mutex<BTreeMap<usize, Arc<Script>>>>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self { translation: Translation::Slots, scripts: Arc::default() }
    }
}

impl Scripted {
    /// The script of vCPU `index`.
    pub(crate) fn script(&self, index: usize) -> Arc<Script> {
        self.scripts.lock().unwrap().entry(index).or_default().clone()
    }
}

impl Backend for Scripted {
    type Platform = Host;
    type Vcpu = ScriptedVcpu;
    type Vm = ();
    const NAME: &'static str = "script";
    const COUNTERS: &'static [&'static str] = &["script_entries"];

    fn translation(&self) -> Translation {
        self.translation
    }
    fn features(&self) -> Features {
        Features::all()
    }
    fn xcr0(&self) -> u64 {
        7
    }
    fn create_vm(&self, _cx: &MaySleep) -> Result<(), OutOfMemory> {
        scarce::allocate()
    }
    fn create_vcpu(&self, _vm: &(), index: usize, _cx: &MaySleep) -> Result<ScriptedVcpu, OutOfMemory> {
        scarce::allocate()?;
        let script = scarce::plenty(|| self.script(index));
        Ok(ScriptedVcpu { state: CpuState::reset(0), script, event: None })
    }
}

pub(crate) struct ScriptedVcpu {
    state: CpuState,
    script: Arc<Script>,
    event: Option<Event>,
}

impl BackendVcpu<Host> for ScriptedVcpu {
    type Vectors = core::convert::Infallible;

    fn registers(&mut self, _need: Groups) -> &CpuState {
        &self.state
    }
    fn registers_mut(&mut self, change: Groups) -> &mut CpuState {
        *self.script.fpu_looks.lock().unwrap() += u64::from(change.0 & Groups::FPU.0 != 0);
        &mut self.state
    }
    fn registers_and_vectors(&mut self, change: Groups) -> (&mut CpuState, Option<&mut Self::Vectors>) {
        (self.registers_mut(change), None)
    }
    fn set_features(&mut self, _features: Features, _xcr0: u64, _physical_bits: u32) {}
    fn set_tsc(&mut self, offset: u64, ratio: u64) {
        *self.script.tsc.lock().unwrap() = (offset, ratio);
    }
    fn set_debug(&mut self, debug: GuestDebug) {
        self.script.note(Note::Debug(debug));
    }
    fn inject(&mut self, event: Event) {
        assert!(self.event.replace(event).is_none(), "two events at once");
        self.script.note(Note::Injected(event));
    }
    fn take_unfinished_event(&mut self) -> Option<Event> {
        self.event.take()
    }
    fn request_window(&mut self, interrupt: bool, nmi: bool) {
        self.script.note(Note::Window { interrupt, nmi });
    }
    fn nmi_blocked(&self) -> bool {
        *self.script.nmi_blocked.lock().unwrap()
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        *self.script.nmi_blocked.lock().unwrap() = blocked;
    }
    fn flush(&mut self, what: FlushTlb) {
        self.script.note(Note::Flushed(what));
    }
    fn counters(&self, mut each: impl FnMut(usize, u64)) {
        each(0, *self.script.entered.lock().unwrap());
    }
    fn can_enter(&mut self) -> bool {
        self.script.takes.lock().unwrap().is_none_or(|takes| takes(&self.state))
    }
    fn load(&mut self, _cx: &Atomic) {}
    fn put(&mut self, _cx: &Atomic) {}
    fn enter(&mut self, env: &Env<'_, Host>) -> Exit {
        self.script.note(Note::Entered);
        *self.script.entered.lock().unwrap() += 1;
        if !core::mem::take(&mut *self.script.cut_short.lock().unwrap()) {
            self.event = None;
        }
        let entry = self.script.entries.lock().unwrap().pop_front();
        match entry {
            Some(entry) => entry(&mut self.state, env),
            None => Exit::Unknown { reason: SCRIPT_OVER },
        }
    }
}

/// Runs "in the guest" until a request comes, as the software CPU does, using translations meanwhile.
pub(crate) fn spin(env: &Env<'_, Host>, mut touch: impl FnMut(&AddressSpace<Host>)) -> Exit {
    while env.requests.load(core::sync::atomic::Ordering::SeqCst) == 0 {
        touch(env.memory);
        std::thread::yield_now();
    }
    Exit::Interrupted
}
