//! A guest processor whose memory is a buffer of the test, at its host address.
use emulate::{Access, Cpu, Flush, Intercept, Op, Res, Stop};
use platform::Word;
use x86::{CpuState, Cr0, Cr4, Efer, Features, Mode, Segment, Vector, exception::pf};

use crate::native::{self, Host, Native};

pub const BUFFER: usize = 8192;

#[repr(align(4096))]
#[derive(Clone)]
pub struct Buffer(pub [u8; BUFFER]);

pub struct Machine {
    pub state: CpuState,
    pub native: Native,
    pub buffer: Box<Buffer>,
    pub features: Features,
    pub bytes: Vec<u8>,
    pub code: u64,
    pub stores: usize,
}

impl Machine {
    /// 64-bit user mode with everything switched on.
    pub fn new() -> Self {
        let mut state = CpuState::reset(0x600);
        state.cr0 = (Cr0::PE | Cr0::PG | Cr0::NE | Cr0::MP | Cr0::ET).bits();
        state.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
        state.efer = (Efer::LME | Efer::LMA | Efer::NXE).bits();
        state.xcr0 = 7;
        state.seg = [Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff); 6];
        state.seg[1] = Segment::from_descriptor(0x33, 0x00af_fb00_0000_ffff);
        state.refresh();
        assert_eq!((state.mode, state.cpl), (Mode::Long64, 3));
        Self {
            state,
            native: Native::new().unwrap(),
            buffer: Box::new(Buffer([0; BUFFER])),
            features: native::offered().0 | Features::CMOV,
            bytes: Vec::new(),
            code: 0x10000,
            stores: 0,
        }
    }

    pub fn at(&self) -> u64 {
        self.buffer.0.as_ptr() as u64
    }

    /// Executes the instruction `bytes`, which is at `code`.
    pub fn step(&mut self, bytes: &[u8]) -> Res {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.state.rip = self.code;
        emulate::step(self)
    }

    fn range(&mut self, linear: u64, bytes: u64, write: bool) -> Res<usize> {
        let at = linear.wrapping_sub(self.at());
        if at > BUFFER as u64 - bytes {
            return Err(Stop::fault_code(Vector::PF, pf::USER | if write { pf::WRITE } else { 0 }));
        }
        Ok(at as usize)
    }
}

impl Host for Machine {
    fn native(&mut self) -> &mut Native {
        &mut self.native
    }
}

impl Cpu for Machine {
    fn state(&self) -> &CpuState {
        &self.state
    }
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn features(&self) -> Features {
        self.features
    }
    fn load<T: Word>(&mut self, linear: u64, _access: Access) -> Res<T> {
        let at = self.range(linear, T::BYTES, false)?;
        let mut bytes = [0; 16];
        let n = T::BYTES as usize;
        bytes[..n].copy_from_slice(&self.buffer.0[at..at + n]);
        let value = u128::from_le_bytes(bytes);
        Ok(T::from_halves(value as u64, (value >> 64) as u64))
    }
    fn store<T: Word>(&mut self, linear: u64, value: T, _access: Access) -> Res {
        let at = self.range(linear, T::BYTES, true)?;
        let bytes = (value.low() as u128 | (value.high() as u128) << 64).to_le_bytes();
        let n = T::BYTES as usize;
        self.buffer.0[at..at + n].copy_from_slice(&bytes[..n]);
        self.stores += 1;
        Ok(())
    }
    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        self.probe_write(linear, T::BYTES, access)?;
        self.load(linear, access)
    }
    fn compare_exchange<T: Word>(&mut self, linear: u64, _old: T, _new: T, access: Access) -> Res<T> {
        self.load(linear, access)
    }
    fn probe_write(&mut self, linear: u64, bytes: u64, _access: Access) -> Res {
        self.range(linear, bytes, true).map(|_| ())
    }
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize> {
        let from = linear.wrapping_sub(self.code) as usize;
        buf.fill(0x90);
        let rest = self.bytes.get(from..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(buf.len())
    }
    fn set_payload(&mut self, _payload: u64) {}
    fn payload(&self) -> u64 {
        0
    }
    fn port_in(&mut self, _port: u16, _size: u8) -> Res<u32> {
        Err(Stop::EXIT)
    }
    fn port_out(&mut self, _port: u16, _size: u8, _value: u32) -> Res {
        Err(Stop::EXIT)
    }
    fn intercept(&mut self, _what: Intercept, _op: &Op<Self>) -> Res {
        Err(Stop::EXIT)
    }
    fn tsc(&mut self) -> Res<u64> {
        Ok(0)
    }
    fn xcr0_supported(&self) -> u64 {
        7
    }
    fn flush(&mut self, _what: Flush) {}
    fn load_physical(&mut self, _gpa: u64) -> Res<u64> {
        Ok(u64::MAX)
    }
    fn random(&mut self) -> u64 {
        0
    }
    fn vector(&mut self, op: &Op<Self>, memory: Option<u64>) -> Res {
        native::execute(self, op, memory)
    }
}
