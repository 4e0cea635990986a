//! What the handler sees of memory.
use super::*;

/// Outside there is nothing at SMBASE.
pub(super) fn own(device: &Device) {
    let machine = Machine::new(
        device,
        |a| {
            a.mov(ax, 0x3000)?;
            a.mov(ds, eax)?;
            a.mov(al, byte_ptr(0))?;
            a.hlt()
        },
        |a| {
            a.mov(al, byte_ptr(0).cs())?;
            a.out(PORT, al)?;
            a.rsm()
        },
    );
    machine.smram.write(0, &[0x22]);
    let vcpu = machine.vcpu();
    machine.smi();
    assert_eq!(machine.run_to_out(), 0x22);
    assert_eq!(vcpu.run(), Exit::Read { gpa: SMBASE, len: 1 });
    vcpu.answer(&[1]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax & 0xff, 1);
}

/// A handler that tells the byte at 0x3000:0, and writes one behind it.
fn look(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(al, byte_ptr(0).cs())?;
    a.mov(byte_ptr(1).cs(), al)?;
    a.out(PORT, al)?;
    a.rsm()
}

/// Tells the byte at 0x3000:0 again and again.
fn look_outside(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ax, 0x3000)?;
    a.mov(ds, eax)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(al, byte_ptr(0))?;
    a.out(PORT, al)?;
    a.jmp(again)
}

pub(super) fn same_address(device: &Device) {
    let machine = Machine::new(device, look_outside, look);
    let outside = machine.real.vm.memory(1, SMBASE, 0x1000);
    outside.write(0, &[0x11]);
    machine.smram.write(0, &[0x22]);
    for _ in 0..3 {
        assert_eq!(machine.run_to_out(), 0x11);
        machine.smi();
        assert_eq!(machine.run_to_out(), 0x22);
        // RSM, and the loop goes on with what it sees.
        assert_eq!(machine.run_to_out(), 0x11);
    }
    assert_eq!((outside.read(1, 1), machine.smram.read(1, 1)), (vec![0], vec![0x22]));
}

/// The handler's page holds other code outside.
pub(super) fn same_code(device: &Device) {
    let machine = Machine::new(
        device,
        |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.db(&[0x9a, 0x00, 0x80, 0x00, 0x30])?; // call 0x3000:0x8000
            a.jmp(again)
        },
        tell(7),
    );
    let outside = machine.real.vm.memory(1, SMBASE + 0x8000, 0x1000);
    let code = assemble(16, 0x8000, |a| {
        a.mov(al, 9)?;
        a.out(PORT, al)?;
        a.retf()
    });
    outside.write(0, &code);
    for _ in 0..3 {
        assert_eq!(machine.run_to_out(), 9);
        machine.smi();
        assert_eq!(machine.run_to_out(), 7);
        assert_eq!(machine.run_to_out(), 9);
    }
}

pub(super) fn slots(device: &Device) {
    let vm = device.vm();
    let memory = Memory::new(0x1000);
    vm.set_slot(1 << 16, 0, 0, memory).expect("address space 1");
    // The same address, and the same number, in the other one.
    vm.set_slot(0, 0, 0, memory).expect("address space 0");
    assert_eq!(vm.set_slot(1 << 16 | 1, 0, 0, memory), Err(Errno::EEXIST));
    let more = (device.cap(KVM_CAP_MULTI_ADDRESS_SPACE) as u32) << 16;
    assert_eq!(vm.set_slot(more, 0, 0, memory), Err(Errno::EINVAL));
    vm.delete_slot(1 << 16).expect("deleted");
    assert_eq!(vm.delete_slot(1 << 16), Err(Errno::EINVAL));
    vm.delete_slot(0).expect("deleted");
}

pub(super) fn dirty(device: &Device) {
    let machine = Machine::new(device, count_and_halt, |a| {
        a.mov(byte_ptr(0x1000).cs(), al)?;
        a.out(PORT, al)?;
        a.rsm()
    });
    let vm = &machine.real.vm;
    vm.set_slot(1 << 16 | 1, KVM_MEM_LOG_DIRTY_PAGES, SMBASE, machine.smram).expect("logged");
    vm.set_slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, machine.real.memory).expect("logged");
    machine.smi();
    machine.run_to_out();
    // The write, and the state save area. (Linux marks what it maps for writing.)
    let both = |dirty: Vec<usize>| dirty.contains(&1) && dirty.contains(&15);
    assert!(both(vm.dirty(1 << 16 | 1, 16)));
    machine.vcpu().run_to_hlt();
    assert!(!vm.dirty(1 << 16 | 1, 16).contains(&15) && !vm.dirty(0, 16).contains(&15));
    machine.smi();
    machine.run_to_out();
    assert!(both(vm.dirty(1 << 16 | 1, 16)));
    assert_eq!(vm.try_dirty(1 << 16, 16), Err(Errno::ENOENT));
}

pub(super) fn device(device: &Device) {
    let machine = Machine::new(device, count_and_halt, |a| {
        a.mov(ebx, 0xfed0_0000u32)?;
        a.db(&[0x67, 0x66, 0x8b, 0x03])?; // mov eax, [ebx]
        a.out(PORT, al)?;
        a.rsm()
    });
    let vcpu = machine.vcpu();
    machine.smi();
    assert_eq!((vcpu.run(), flagged(vcpu)), (Exit::Read { gpa: 0xfed0_0000, len: 4 }, true));
    vcpu.answer(&[0x55, 0, 0, 0]);
    assert_eq!(machine.run_to_out(), 0x55);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx, 1);
}
