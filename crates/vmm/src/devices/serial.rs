//! The first serial port: the guest's console.

use super::{IrqLine, lock};
use crate::bus::BusDevice;
use crate::control::{Control, Ending};
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// Ports the registers take.
pub const LEN: u64 = 8;

const DATA: u8 = 0;
const LINE_STATUS: u8 = 5;
/// Interrupt enable: received data.
const RECEIVE_INTERRUPT: u8 = 1;
/// Modem control: "data terminal ready". Drivers set it last when they open the port, and not
/// while they try out what kind of port it is.
const TERMINAL_READY: u8 = 1;
/// Modem control: what is sent comes back.
const LOOPBACK: u8 = 0x10;
/// So many looks at the line status with nothing in between are someone who waits for input.
const POLLS_OF_A_READER: u32 = 8;

/// An interrupt that the port raises and that software acknowledges in the port.
pub struct EdgeIrq(Arc<dyn IrqLine>);

impl Trigger for EdgeIrq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        self.0.set(false);
        Ok(())
    }
}

/// A 16550A.
pub struct Com1<W: Write> {
    port: Mutex<Port<W>>,
    control: Arc<Control>,
}

struct Port<W: Write> {
    uart: Serial<EdgeIrq, NoEvents, W>,
    /// Reads of the line status since the last other access.
    polls: u32,
    /// Someone wants to be told when the guest can take input.
    input_waits: bool,
}

impl<W: Write> Port<W> {
    /// Would input reach a reader? Before a driver is there it would be thrown
    /// away: Linux empties the receiver when it opens the port.
    fn listens(&self) -> bool {
        let state = self.uart.state();
        let driver = state.interrupt_enable & RECEIVE_INTERRUPT != 0 && state.modem_control & TERMINAL_READY != 0;
        let reader = driver || self.polls >= POLLS_OF_A_READER;
        reader && state.modem_control & LOOPBACK == 0 && self.uart.fifo_capacity() > 0
    }
}

impl<W: Write + Send> Com1<W> {
    /// A port that sends to `out` and raises `irq`.
    pub fn new(irq: Arc<dyn IrqLine>, out: W, control: Arc<Control>) -> Self {
        let uart = Serial::new(EdgeIrq(irq), out);
        Self { port: Mutex::new(Port { uart, polls: 0, input_waits: false }), control }
    }

    /// Hands input to the guest; answers how much it took. If not all, the
    /// control's [`Control::wake`] tells when to try again.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.port);
        let taken = if port.listens() { port.uart.enqueue_raw_bytes(bytes).unwrap_or(0) } else { 0 };
        port.input_waits = taken < bytes.len();
        taken
    }
}

impl<W: Write + Send> BusDevice for Com1<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = lock(&self.port);
        let offset = offset as u8;
        data[0] = port.uart.read(offset);
        port.polls = if offset == LINE_STATUS { port.polls.saturating_add(1) } else { 0 };
        if port.input_waits && (offset == DATA || port.polls == POLLS_OF_A_READER) && port.listens() {
            port.input_waits = false;
            self.control.wake();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = lock(&self.port);
        port.polls = 0;
        if let Err(vm_superio::serial::Error::IOError(error)) = port.uart.write(offset as u8, data[0])
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            self.control.end(Ending::Host(format!("cannot write the console's output: {error}")));
        }
        if offset != u64::from(DATA) && port.input_waits && port.listens() {
            port.input_waits = false;
            self.control.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl IrqLine for Count {
        fn set(&self, level: bool) {
            self.0.fetch_add(u32::from(level), Ordering::Relaxed);
        }
    }

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (Arc<Count>, Out, Com1<Out>) {
        let (irq, out) = (Arc::new(Count::default()), Out::default());
        let port = Com1::new(irq.clone(), out.clone(), Arc::new(Control::new().unwrap()));
        (irq, out, port)
    }

    #[test]
    fn output_goes_out() {
        let (_, out, port) = port();
        for byte in b"hi\n" {
            port.write(0, &[*byte]);
        }
        assert_eq!(*out.0.lock().unwrap(), b"hi\n");
    }

    #[test]
    fn input_waits_for_a_driver() {
        let (irq, _, port) = port();
        assert_eq!(port.input(b"ab"), 0);
        port.write(1, &[1]);
        assert_eq!(port.input(b"ab"), 0, "only trying out");
        port.write(4, &[TERMINAL_READY]);
        assert_eq!(port.input(b"ab"), 2);
        assert_eq!(irq.0.load(Ordering::Relaxed), 1);
        let mut data = [0xff];
        port.read(0, &mut data);
        assert_eq!(data, *b"a");
    }

    #[test]
    fn input_reaches_a_reader_that_polls() {
        let (_, _, port) = port();
        for _ in 0..POLLS_OF_A_READER {
            assert_eq!(port.input(b"x"), 0);
            port.read(5, &mut [0]);
        }
        assert_eq!(port.input(b"x"), 1);
    }

    #[test]
    fn the_fifo_does_not_overflow() {
        let (_, _, port) = port();
        port.write(1, &[1]);
        port.write(4, &[TERMINAL_READY]);
        let taken = port.input(&[b'x'; 1000]);
        assert!(taken > 0 && taken < 1000);
        assert_eq!(port.input(b"y"), 0);
        port.read(0, &mut [0]);
        assert_eq!(port.input(b"y"), 1);
    }

    #[test]
    fn nothing_enters_in_loopback() {
        let (_, _, port) = port();
        port.write(1, &[1]);
        port.write(4, &[LOOPBACK | TERMINAL_READY]);
        assert_eq!(port.input(b"x"), 0);
    }
}
