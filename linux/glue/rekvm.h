/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The C side of rekvm.ko. It holds what only C can say to the kernel: structures whose layout depends on its
 * configuration, macros and inline functions, tables of callbacks. What to do is decided in Rust: functions named
 * rekvm_rs_* are Rust's, rekvm_* are here, and each does one thing.
 */
#ifndef REKVM_H
#define REKVM_H

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/types.h>

#undef pr_fmt
#define pr_fmt(fmt) "rekvm: " fmt

struct file;
struct page;
struct task_struct;
struct vm_area_struct;

/* What follows may sleep. A test build notices where nobody may, which stock kernels do not. */
#ifdef REKVM_scarce
#define rekvm_may_sleep() WARN_ON_ONCE(!preemptible())
#else
#define rekvm_may_sleep() do { } while (0)
#endif

/* The module's life. */
int rekvm_rs_init(void);
void rekvm_rs_exit(void);

/* Processors come, go, sleep and wake: called on the processor itself with interrupts off. */
int rekvm_rs_cpu_enable(unsigned int cpu);
void rekvm_rs_cpu_disable(unsigned int cpu);

/* What rekvm_on_cpu has another processor do. */
void rekvm_rs_call(void *data);

/* Descriptors. `object` is what rekvm_*_fd was given. */
long rekvm_rs_device_ioctl(unsigned int nr, unsigned long arg);
long rekvm_rs_vm_ioctl(void *object, unsigned int nr, unsigned long arg);
void rekvm_rs_vm_mapped(void *object, struct vm_area_struct *vma, unsigned long first, unsigned long pages);
struct page *rekvm_rs_vm_page(void *object, unsigned long index);
void rekvm_rs_vm_release(void *object);
long rekvm_rs_vcpu_ioctl(void *object, unsigned int nr, unsigned long arg);
struct page *rekvm_rs_vcpu_page(void *object, unsigned long index);
void rekvm_rs_vcpu_release(void *object);
ssize_t rekvm_rs_stats_read(void *object, unsigned long to, size_t bytes, u64 offset);
void rekvm_rs_stats_release(void *object);

/* The client's memory changes. */
void rekvm_rs_invalidate_begin(void *object, u64 start, u64 end);
void rekvm_rs_invalidate_end(void *object);
bool rekvm_rs_young(void *object, u64 start, u64 end, bool take);

/* The kernel is short of memory. */
unsigned long rekvm_rs_shrinkable(void);
unsigned long rekvm_rs_shrink(unsigned long wanted);

/* What a file of statistics shows. */
u64 rekvm_rs_statistic(void *shown);

#endif
