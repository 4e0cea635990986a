//! x87, MMX, SSE and AVX instructions with operands in device memory (SDM vol. 1, chapters 8 to 14), which the client
//! serves. Linux's KVM has no emulation for most of them, and ends KVM_RUN with an internal error.
mod common;

use std::ptr;

use abi::*;
use common::{Map, RW, ioctl, number};
use user::device;

const CODE: u64 = 0x1000;
/// Where EDI points: no memory there.
const DEVICE: u64 = 0x1_0000;

/// What the device holds: 1.5 as a double, 2.5 as a float, -3, and 16 bytes.
fn held() -> [u8; 64] {
    let mut held = [0; 64];
    held[..8].copy_from_slice(&1.5f64.to_le_bytes());
    held[8..12].copy_from_slice(&2.5f32.to_le_bytes());
    held[12..16].copy_from_slice(&(-3i32).to_le_bytes());
    (held[16..32]).copy_from_slice(b"abcdefghijklmnop");
    held
}

/// A client that serves the device.
struct Client {
    kvm: i32,
    vcpu: i32,
    run: Map,
    memory: *mut u8,
    held: [u8; 64],
    /// Bytes read and written.
    traffic: (usize, usize),
}

impl Client {
    fn new() -> Self {
        let kvm = device::open().unwrap();
        let vm = number(kvm, KVM_CREATE_VM, 0).unwrap();
        // SAFETY: a new mapping.
        let memory = unsafe {
            libc::mmap(ptr::null_mut(), 4096, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0).cast::<u8>()
        };
        let mut region = KvmUserspaceMemoryRegion {
            guest_phys_addr: CODE,
            memory_size: 4096,
            userspace_addr: memory as u64,
            ..KvmUserspaceMemoryRegion::default()
        };
        ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
        let (vcpu, run) = common::vcpu(vm, CODE);
        Self { kvm, vcpu, run, memory, held: held(), traffic: (0, 0) }
    }

    /// Gives the guest all features; whether AVX is among them.
    fn support_all(&self) -> bool {
        #[repr(C)]
        struct Table(KvmCpuid2, [KvmCpuidEntry2; 100]);
        let mut table = Table(KvmCpuid2 { nent: 100, padding: 0 }, [KvmCpuidEntry2::default(); 100]);
        ioctl(self.kvm, KVM_GET_SUPPORTED_CPUID, &mut table).unwrap();
        ioctl(self.vcpu, KVM_SET_CPUID2, &mut table).unwrap();
        let entries = &table.1[..table.0.nent as usize];
        entries.iter().any(|entry| entry.function == 1 && entry.ecx >> 28 & 1 != 0)
    }

    /// Runs `code` and HLT in 32-bit protected mode, with the device as it was at the start.
    fn execute(&mut self, code: &[u8]) {
        (self.held, self.traffic) = (held(), (0, 0));
        for (n, byte) in code.iter().chain(&[0xf4]).enumerate() {
            // SAFETY: the mapping is a page, the code shorter.
            unsafe { self.memory.add(n).write_volatile(*byte) };
        }
        let mut sregs = KvmSregs::default();
        ioctl(self.vcpu, KVM_GET_SREGS, &mut sregs).unwrap();
        sregs.cr0 |= 1;
        sregs.cr4 = 0x4_0200;
        (sregs.cs.selector, sregs.cs.base, sregs.cs.limit, sregs.cs.type_) = (8, 0, 0xffff_ffff, 11);
        (sregs.cs.db, sregs.cs.g, sregs.cs.s, sregs.cs.present) = (1, 1, 1, 1);
        sregs.ds = KvmSegment { type_: 3, selector: 16, ..sregs.cs };
        (sregs.es, sregs.ss) = (sregs.ds, sregs.ds);
        ioctl(self.vcpu, KVM_SET_SREGS, &mut sregs).unwrap();
        let mut regs = KvmRegs { rip: CODE, rflags: 2, rdi: DEVICE, ..KvmRegs::default() };
        ioctl(self.vcpu, KVM_SET_REGS, &mut regs).unwrap();
        loop {
            number(self.vcpu, KVM_RUN, 0).unwrap();
            match self.field(KVM_RUN_EXIT_REASON_OFFSET) as u32 {
                KVM_EXIT_MMIO => self.serve(),
                KVM_EXIT_HLT => return,
                other => panic!("exit {other} in {code:02x?}"),
            }
        }
    }

    fn serve(&mut self) {
        let at = KVM_RUN_UNION_OFFSET;
        let offset = (self.field(at) - DEVICE) as usize;
        let (len, write) = (self.field(at + 16) as u32 as usize, self.run.read(at + 20) != 0);
        for n in 0..len {
            if write {
                self.held[offset + n] = self.run.read(at + 8 + n);
            } else {
                self.run.write(at + 8 + n, &[self.held[offset + n]]);
            }
        }
        *(if write { &mut self.traffic.1 } else { &mut self.traffic.0 }) += len;
    }

    fn field(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.run.read(at + n)))
    }
}

#[test]
fn every_kind_of_register_is_loaded_computed_with_and_stored() {
    let mut client = Client::new();
    let avx = client.support_all();
    let double = |value: f64| value.to_le_bytes().to_vec();
    let mut extended = (3u64 << 62).to_le_bytes().to_vec();
    extended.extend([0x00, 0xc0]);
    let sums = held()[16..32].iter().map(|byte| byte.wrapping_mul(2)).collect::<Vec<_>>();
    let halves: Vec<u8> = held()[16..24].iter().zip(&held()[24..32]).map(|(a, b)| a.wrapping_add(*b)).collect();
    // What it leaves at EDI + 32, and how many bytes it reads.
    let rows: [(&str, &[u8], Vec<u8>, usize); 6] = [
        ("fninit; fild qword [edi]; fistp qword [edi+32]", &[0xdb, 0xe3, 0xdf, 0x2f, 0xdf, 0x7f, 32], double(1.5), 8),
        (
            "fninit; fld qword [edi]; fadd dword [edi+8]; fstp qword [edi+32]",
            &[0xdb, 0xe3, 0xdd, 0x07, 0xd8, 0x47, 8, 0xdd, 0x5f, 32],
            double(4.0),
            12,
        ),
        (
            "fninit; fild dword [edi+12]; fstp tbyte [edi+32]",
            &[0xdb, 0xe3, 0xdb, 0x47, 12, 0xdb, 0x7f, 32],
            extended,
            4,
        ),
        (
            "movq mm0, [edi+16]; paddb mm0, [edi+24]; movq [edi+32], mm0; emms",
            &[0x0f, 0x6f, 0x47, 16, 0x0f, 0xfc, 0x47, 24, 0x0f, 0x7f, 0x47, 32, 0x0f, 0x77],
            halves,
            16,
        ),
        (
            "movups xmm0, [edi+16]; paddb xmm0, [edi+16]; movups [edi+32], xmm0",
            &[0x0f, 0x10, 0x47, 16, 0x66, 0x0f, 0xfc, 0x47, 16, 0x0f, 0x11, 0x47, 32],
            sums,
            32,
        ),
        (
            "movsd xmm1, [edi]; addsd xmm1, [edi]; movsd [edi+32], xmm1",
            &[0xf2, 0x0f, 0x10, 0x0f, 0xf2, 0x0f, 0x58, 0x0f, 0xf2, 0x0f, 0x11, 0x4f, 32],
            double(3.0),
            16,
        ),
    ];
    for (what, code, result, read) in rows {
        client.execute(code);
        assert_eq!(client.held[32..32 + result.len()], result, "{what}");
        assert_eq!(client.traffic, (read, result.len()), "{what}");
    }
    if avx {
        // xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv
        let mut code = vec![0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x01, 0xd1];
        // vmovdqu ymm0, [edi]; vaddps ymm0, ymm0, [edi]; vmovdqu [edi+32], ymm0
        code.extend([0xc5, 0xfe, 0x6f, 0x07, 0xc5, 0xfc, 0x58, 0x07, 0xc5, 0xfe, 0x7f, 0x47, 32]);
        client.execute(&code);
        assert_eq!((&client.held[40..44], client.traffic), (&5f32.to_le_bytes()[..], (64, 32)));
    }
}

/// A stack fault and an unmasked exception are the guest's, though the operand is a device's (SDM vol. 1, 8.5.1 and 8.7).
#[test]
fn exceptions_are_as_with_operands_in_memory() {
    let mut client = Client::new();
    client.support_all();
    // fninit; fst dword [edi+32] of an empty register: masked, it stores the indefinite NaN.
    client.execute(&[0xdb, 0xe3, 0xd9, 0x57, 32]);
    assert_eq!(client.held[32..36], 0xffc0_0000u32.to_le_bytes());
    // Unmasked (fldcw [edi+40] of 0x37e), it stores nothing, and the next waiting instruction would fault.
    let mut fpu = KvmFpu { fcw: 0x37e, ..KvmFpu::default() };
    ioctl(client.vcpu, KVM_SET_FPU, &mut fpu).unwrap();
    client.execute(&[0xd9, 0x57, 32]);
    assert_eq!((client.held[32..36].to_vec(), client.traffic), (vec![0; 4], (0, 0)));
    ioctl(client.vcpu, KVM_GET_FPU, &mut fpu).unwrap();
    assert_eq!(fpu.fsw & 0x80c1, 0x8041 | fpu.fsw & 0x80, "invalid operation and stack fault, pending");
}
