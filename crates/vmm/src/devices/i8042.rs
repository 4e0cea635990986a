//! The keyboard controller, reduced to its command to reset the machine.

use super::lock;
use crate::bus::BusDevice;
use crate::control::{Control, Ending};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use vm_superio::{I8042Device, Trigger};

/// The command that resets the processor.
pub const RESET: u8 = 0xfe;

struct ResetLine(Arc<Control>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Ending::Reset);
        Ok(())
    }
}

/// Register offset of the command port, as the controller counts.
const COMMAND: u8 = 4;

/// One of the controller's two ports. Between them lies the speaker's, which is the
/// hypervisor's.
pub struct I8042 {
    controller: Mutex<I8042Device<ResetLine>>,
    offset: u8,
}

impl I8042 {
    /// Port 0x60: no keyboard ever sends anything.
    pub fn data_port(control: Arc<Control>) -> Self {
        Self::port(control, 0)
    }

    /// Port 0x64, whose reset command ends the machine.
    pub fn command_port(control: Arc<Control>) -> Self {
        Self::port(control, COMMAND)
    }

    fn port(control: Arc<Control>, offset: u8) -> Self {
        Self { controller: Mutex::new(I8042Device::new(ResetLine(control))), offset }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data[0] = lock(&self.controller).read(self.offset);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Ok(()) = lock(&self.controller).write(self.offset, data[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let control = Arc::new(Control::new().unwrap());
        let data = I8042::data_port(control.clone());
        let command = I8042::command_port(control.clone());
        data.write(0, &[RESET]);
        command.write(0, &[0xd1]);
        assert!(!control.ended());
        command.write(0, &[RESET]);
        assert_eq!(control.ending(), Some(Ending::Reset));
    }
}
