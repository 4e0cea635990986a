// SPDX-License-Identifier: MIT OR GPL-2.0
/* What a back end for the processor's own virtualization needs: interrupts, accounting, the FPU, mitigations. */
#include <linux/context_tracking.h>
#include <linux/entry-kvm.h>
#include <linux/hw_breakpoint.h>
#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/vtime.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/api.h>
#include <asm/mce.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include <asm/thread_info.h>
#include <asm/tlbflush.h>

#include "rekvm.h"

unsigned int rekvm_cpu(void)
{
	return smp_processor_id();
}

unsigned int rekvm_cpus(void)
{
	return nr_cpu_ids;
}

/* Has another processor, or this one, run rekvm_rs_call with interrupts off, and waits. */
void rekvm_on_cpu(unsigned int cpu, void *data)
{
	smp_call_function_single(cpu, rekvm_rs_call, data, 1);
}

/* Interrupts are off. */
void rekvm_change_cr4(unsigned long bits, bool set)
{
	if (set)
		cr4_set_bits_irqsoff(bits);
	else
		cr4_clear_bits_irqsoff(bits);
}

void rekvm_irqs_off(void)
{
	local_irq_disable();
}

/* Answers this processor's number, with interrupts off, or -1 if the thread has other work. */
int rekvm_prepare(void)
{
	local_irq_disable();
	if (likely(!__xfer_to_guest_mode_work_pending()))
		return smp_processor_id();
	local_irq_enable();
	return -1;
}

/* A tick that has come in the guest is the guest's time, which ends behind it. */
void rekvm_irqs_on(void)
{
	local_irq_enable();
	if (!(current->flags & PF_VCPU))
		return;
	if (vtime_accounting_enabled_this_cpu()) {
		local_irq_disable();
		vtime_account_guest_exit();
		local_irq_enable();
	} else {
		/* A flag of this thread's. */
		vtime_account_guest_exit();
	}
}

/* When this processor has last told that it uses nothing of the kernel's that needs a grace period. */
static DEFINE_PER_CPU(unsigned long, told);

/*
 * The kernel knows that time is the guest's, and that this processor uses nothing of its own that needs a grace period. Once a tick is
 * enough: nobody waits for less. The FPU has what the thread has loaded.
 */
void rekvm_guest_begins(void)
{
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
	vtime_account_guest_enter();
	if (!context_tracking_guest_enter() && __this_cpu_read(told) != jiffies) {
		__this_cpu_write(told, jiffies);
		rcu_virt_note_context_switch(smp_processor_id());
	}
}

void rekvm_guest_ended(void)
{
	context_tracking_guest_exit();
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
}

void rekvm_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = {
		.cs = 3,
		.flags = X86_EFLAGS_IF,
	};

	do_machine_check(&regs);
#endif
}

/* Bits: as `mitigations` in hardware.rs takes them apart. */
u32 rekvm_mitigations(void)
{
	u32 bits = 0;

	if (boot_cpu_has(X86_FEATURE_USE_IBPB))
		bits |= 1;
	if (boot_cpu_has(X86_FEATURE_RSB_VMEXIT))
		bits |= 2;
#ifdef X86_FEATURE_CLEAR_CPU_BUF_VM
	if (boot_cpu_has(X86_FEATURE_CLEAR_CPU_BUF_VM))
		bits |= 4;
#endif
	if (boot_cpu_has_bug(X86_BUG_L1TF) && boot_cpu_has(X86_FEATURE_FLUSH_L1D) &&
	    l1tf_mitigation != L1TF_MITIGATION_OFF)
		bits |= 8;
	if (boot_cpu_has(X86_FEATURE_UNRET) || boot_cpu_has(X86_FEATURE_ENTRY_IBPB))
		bits |= 16;
#ifdef X86_FEATURE_SRSO_ALIAS
	if (boot_cpu_has(X86_FEATURE_SRSO_ALIAS))
		bits |= 16;
#endif
#ifdef X86_FEATURE_IBPB_ON_VMEXIT
	if (boot_cpu_has(X86_FEATURE_IBPB_ON_VMEXIT))
		bits |= 16;
#endif
	return bits;
}

/* An exit on Intel's processors has cut the task-state segment off before its map of ports, which only user mode uses. */
static void ports_again(void)
{
#ifdef CONFIG_X86_IOPL_IOPERM
	if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL)
		invalidate_tss_limit();
#endif
}

/* When a thread loses its processor to another one, or takes what a guest has left there back to user mode. */
struct rekvm_switch {
	struct preempt_notifier notifier;
	void (*callback)(void *data);
	void *data;
};

const size_t rekvm_switch_size = sizeof(struct rekvm_switch);

static void comes(struct preempt_notifier *notifier, int cpu)
{
}

/* Interrupts are off. */
static void goes(struct preempt_notifier *notifier, struct task_struct *next)
{
	struct rekvm_switch *watched = container_of(notifier, struct rekvm_switch, notifier);

	watched->callback(watched->data);
	ports_again();
}

static struct preempt_ops switch_ops = {
	.sched_in = comes,
	.sched_out = goes,
};

void rekvm_switch_init(struct rekvm_switch *watched, void (*callback)(void *data), void *data)
{
	preempt_notifier_init(&watched->notifier, &switch_ops);
	watched->callback = callback;
	watched->data = data;
	preempt_notifier_inc();
}

void rekvm_switch_destroy(struct rekvm_switch *watched)
{
	preempt_notifier_dec();
}

void rekvm_switch_begin(struct rekvm_switch *watched)
{
	preempt_disable();
	preempt_notifier_register(&watched->notifier);
	preempt_enable();
}

void rekvm_switch_end(struct rekvm_switch *watched)
{
	preempt_disable();
	preempt_notifier_unregister(&watched->notifier);
	ports_again();
	preempt_enable();
}

/* A guest's registers, and room for them in the form that the ABI has. */
struct rekvm_fpu {
	struct fpu_guest guest;
	u8 area[PAGE_SIZE] __aligned(64);
};

const size_t rekvm_fpu_size = sizeof(struct rekvm_fpu);
const size_t rekvm_fpu_area = offsetof(struct rekvm_fpu, area);

bool rekvm_fpu_init(struct rekvm_fpu *fpu)
{
	return fpu_alloc_guest_fpstate(&fpu->guest);
}

void rekvm_fpu_destroy(struct rekvm_fpu *fpu)
{
	fpu_free_guest_fpstate(&fpu->guest);
}

/* Exchanges the thread's registers and the guest's. */
void rekvm_fpu_swap(struct rekvm_fpu *fpu, bool to_guest)
{
	fpu_swap_kvm_fpstate(&fpu->guest, to_guest);
}

/* Before an update of 6.1 the kernel did not ask which components are wanted: it gave all that the guest has. */
typedef void save_t(struct fpu_guest *guest, void *to, unsigned int size, u64 components, u32 pkru);
typedef void save_all_t(struct fpu_guest *guest, void *to, unsigned int size, u32 pkru);

void rekvm_fpu_save(struct rekvm_fpu *fpu, u64 components)
{
	void *save = fpu_copy_guest_fpstate_to_uabi;

	if (__builtin_types_compatible_p(typeof(fpu_copy_guest_fpstate_to_uabi), save_all_t))
		((save_all_t *)save)(&fpu->guest, fpu->area, sizeof(fpu->area), 0);
	else
		((save_t *)save)(&fpu->guest, fpu->area, sizeof(fpu->area), components, 0);
}

/* Zero, or an error number. */
int rekvm_fpu_restore(struct rekvm_fpu *fpu, u64 components)
{
	u32 pkru = 0;

	return fpu_copy_uabi_to_guest_fpstate(&fpu->guest, fpu->area, components, &pkru);
}
