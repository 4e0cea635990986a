//! 2007's paravirtual guests (row A18): a guest announces a page by an MSR, and the hypervisor writes its hypercall
//! instruction where the page says.
use abi::{KVM_PARA_API_VERSION, KvmVcpuPara, Pod};
use mmu::PhysMem;
use platform::Platform;
use x86::{Features, paging::PAGE_SIZE};

use crate::{msr::Refused, vm::VmShared};

/// VMCALL or VMMCALL, and RET.
const VMCALL: [u8; 4] = [0x0f, 0x01, 0xc1, 0xc3];
const VMMCALL: [u8; 4] = [0x0f, 0x01, 0xd9, 0xc3];
/// The page's answers.
const OK: u32 = 0;
const EINVAL: u32 = 22u32.wrapping_neg();

/// Handles a write of `gpa` to the MSR. True if the vCPU uses 2007's hypercalls from now on.
pub(super) fn announce<P: Platform>(
    gpa: u64,
    features: Features,
    vm: &VmShared<P>,
    reader: usize,
) -> Result<bool, Refused> {
    let view = vm.memory.view(reader).ok_or(Refused::Invalid)?;
    let mut para = KvmVcpuPara::default();
    if !gpa.is_multiple_of(PAGE_SIZE) || view.read(gpa, para.bytes_mut()).is_err() {
        return Err(Refused::Invalid);
    }
    drop(view);
    let write = |gpa, bytes: &[u8]| vm.write_guest(reader, gpa, bytes);
    let code = if features.contains(Features::AMD) { VMMCALL } else { VMCALL };
    let fits = para.hypercall_gpa % PAGE_SIZE <= PAGE_SIZE - code.len() as u64;
    let good = para.guest_version >= KVM_PARA_API_VERSION && fits && write(para.hypercall_gpa, &code).is_ok();
    para.host_version = KVM_PARA_API_VERSION;
    para.ret = if good { OK } else { EINVAL };
    write(gpa, para.bytes()).map_err(|_| Refused::Invalid)?;
    Ok(good)
}
