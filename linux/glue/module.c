// SPDX-License-Identifier: MIT OR GPL-2.0
/* The module itself: its parameters, /dev/kvm, and callbacks for processors that come and go. */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>

#include "rekvm.h"

bool rekvm_npt = true;
module_param_named(npt, rekvm_npt, bool, 0444);
MODULE_PARM_DESC(npt, "AMD-V: 1: nested paging where the processor has it (default); 0: shadow paging");

bool rekvm_ept = true;
module_param_named(ept, rekvm_ept, bool, 0444);
MODULE_PARM_DESC(ept, "VT-x: 1: nested paging where the processor has it (default); 0: shadow paging");

bool rekvm_vnmi = true;
module_param_named(vnmi, rekvm_vnmi, bool, 0444);
MODULE_PARM_DESC(vnmi, "VT-x: 1: virtual NMIs where the processor has them (default); 0: as if it had none");

#ifdef REKVM_scarce
int rekvm_fail_at;
module_param_named(fail_at, rekvm_fail_at, int, 0644);
MODULE_PARM_DESC(fail_at, "a test: so many allocations from now on, one fails");
#endif

extern const struct file_operations rekvm_device_fops;

static struct miscdevice rekvm_device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &rekvm_device_fops,
};

int rekvm_device_register(void)
{
	return misc_register(&rekvm_device);
}

void rekvm_device_deregister(void)
{
	misc_deregister(&rekvm_device);
}

static int rekvm_starting(unsigned int cpu)
{
	return rekvm_rs_cpu_enable(cpu);
}

static int rekvm_dying(unsigned int cpu)
{
	rekvm_rs_cpu_disable(cpu);
	return 0;
}

static void rekvm_disable_here(void *unused)
{
	rekvm_rs_cpu_disable(smp_processor_id());
}

static void rekvm_enable_here(void *failed)
{
	int error = rekvm_rs_cpu_enable(smp_processor_id());

	if (error)
		WRITE_ONCE(*(int *)failed, error);
}

static int rekvm_suspend(void)
{
	rekvm_disable_here(NULL);
	return 0;
}

static void rekvm_resume(void)
{
	int failed = 0;

	rekvm_enable_here(&failed);
}

static struct syscore_ops rekvm_syscore_ops = {
	.suspend = rekvm_suspend,
	.resume = rekvm_resume,
};

static int rekvm_reboot(struct notifier_block *block, unsigned long event, void *unused)
{
	on_each_cpu(rekvm_disable_here, NULL, 1);
	return NOTIFY_OK;
}

static struct notifier_block rekvm_reboot_block = {
	.notifier_call = rekvm_reboot,
};

/* Enables every processor, now and when it comes; an error number if one refused. */
int rekvm_processors_enable(void)
{
	int failed = 0;
	int error;

	cpus_read_lock();
	on_each_cpu(rekvm_enable_here, &failed, 1);
	error = failed;
	if (!error)
		error = cpuhp_setup_state_nocalls_cpuslocked(CPUHP_AP_KVM_STARTING, "rekvm:starting", rekvm_starting,
							     rekvm_dying);
	if (error)
		on_each_cpu(rekvm_disable_here, NULL, 1);
	cpus_read_unlock();
	if (error)
		return error;
	register_syscore_ops(&rekvm_syscore_ops);
	register_reboot_notifier(&rekvm_reboot_block);
	return 0;
}

void rekvm_processors_disable(void)
{
	unregister_reboot_notifier(&rekvm_reboot_block);
	unregister_syscore_ops(&rekvm_syscore_ops);
	cpus_read_lock();
	cpuhp_remove_state_nocalls_cpuslocked(CPUHP_AP_KVM_STARTING);
	on_each_cpu(rekvm_disable_here, NULL, 1);
	cpus_read_unlock();
}

static int __init rekvm_init(void)
{
	return rekvm_rs_init();
}

static void __exit rekvm_exit(void)
{
	rekvm_rs_exit();
}

module_init(rekvm_init);
module_exit(rekvm_exit);

MODULE_DESCRIPTION("rekvm: KVM written again in Rust");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_ALIAS_MISCDEV(KVM_MINOR);
MODULE_ALIAS("devname:kvm");
