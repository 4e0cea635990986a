// SPDX-License-Identifier: MIT OR GPL-2.0
/* Locks, sleeping and waking, timers, clocks, signals, the log. */
#include <linux/entry-kvm.h>
#include <linux/hrtimer.h>
#include <linux/kvm_host.h>
#include <linux/mutex.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/signal.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <asm/tsc.h>

#include "rekvm.h"

/* One class of locks for each rank. */
static struct lock_class_key keys[256];

struct rekvm_mutex {
	struct mutex mutex;
};

const size_t rekvm_mutex_size = sizeof(struct rekvm_mutex);

void rekvm_mutex_init(struct rekvm_mutex *lock, u8 rank)
{
	__mutex_init(&lock->mutex, "rekvm_mutex", &keys[rank]);
}

void rekvm_mutex_lock(struct rekvm_mutex *lock)
{
	rekvm_may_sleep();
	mutex_lock(&lock->mutex);
}

bool rekvm_mutex_trylock(struct rekvm_mutex *lock)
{
	return mutex_trylock(&lock->mutex);
}

void rekvm_mutex_unlock(struct rekvm_mutex *lock)
{
	mutex_unlock(&lock->mutex);
}

/* The chain of all VMs. Nothing is allocated under it. */
static DEFINE_MUTEX(machines);

void rekvm_machines_lock(void)
{
	mutex_lock(&machines);
}

void rekvm_machines_unlock(void)
{
	mutex_unlock(&machines);
}

struct rekvm_spin {
	raw_spinlock_t lock;
	unsigned long flags;
};

const size_t rekvm_spin_size = sizeof(struct rekvm_spin);

void rekvm_spin_init(struct rekvm_spin *lock, u8 rank)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(&lock->lock, "rekvm_spin", &keys[rank], LD_WAIT_SPIN);
#else
	raw_spin_lock_init(&lock->lock);
#endif
}

void rekvm_spin_lock(struct rekvm_spin *lock)
{
	raw_spin_lock(&lock->lock);
}

bool rekvm_spin_trylock(struct rekvm_spin *lock)
{
	return raw_spin_trylock(&lock->lock);
}

void rekvm_spin_unlock(struct rekvm_spin *lock)
{
	raw_spin_unlock(&lock->lock);
}

/* The same with interrupts off while it is held. */
void rekvm_spin_lock_irq(struct rekvm_spin *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&lock->lock, flags);
	lock->flags = flags;
}

bool rekvm_spin_trylock_irq(struct rekvm_spin *lock)
{
	unsigned long flags;

	if (!raw_spin_trylock_irqsave(&lock->lock, flags))
		return false;
	lock->flags = flags;
	return true;
}

void rekvm_spin_unlock_irq(struct rekvm_spin *lock)
{
	raw_spin_unlock_irqrestore(&lock->lock, lock->flags);
}

void rekvm_preempt_disable(void)
{
	preempt_disable();
}

void rekvm_preempt_enable(void)
{
	preempt_enable();
}

struct task_struct *rekvm_current(void)
{
	return current;
}

void rekvm_rcu_read_lock(void)
{
	rcu_read_lock();
}

void rekvm_rcu_read_unlock(void)
{
	rcu_read_unlock();
}

void rekvm_wake(struct task_struct *task)
{
	wake_up_process(task);
}

void rekvm_kick(struct task_struct *task)
{
	kick_process(task);
}

/* From here on a wake-up ends the next rekvm_schedule; a full barrier. */
void rekvm_will_sleep(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
}

void rekvm_schedule(void)
{
	schedule();
}

void rekvm_will_not_sleep(void)
{
	__set_current_state(TASK_RUNNING);
}

bool rekvm_signal_pending(void)
{
	return signal_pending(current);
}

/* Whether another thread is due, or this one has work to do before it may go on. */
bool rekvm_work_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
}

/* Does that work, but for signals. */
void rekvm_work(void)
{
	/* A signal is noted in a vCPU of Linux's, which nobody looks at. */
	static struct kvm_run run;
	static struct kvm_vcpu nobody = { .run = &run };

	xfer_to_guest_mode_handle_work(&nobody);
}

void rekvm_cond_resched(void)
{
	cond_resched();
}

/* A signal mask for KVM_RUN; the thread's own is kept where it belongs meanwhile. */
void rekvm_signal_mask(u64 mask)
{
	sigset_t set;

	siginitset(&set, 0);
	set.sig[0] = mask;
	sigdelsetmask(&set, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &set, &current->real_blocked);
}

void rekvm_signal_mask_back(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}

struct rekvm_timer {
	struct hrtimer timer;
	void (*expired)(void *data);
	void *data;
};

const size_t rekvm_timer_size = sizeof(struct rekvm_timer);

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct rekvm_timer *t = container_of(timer, struct rekvm_timer, timer);

	t->expired(t->data);
	return HRTIMER_NORESTART;
}

void rekvm_timer_init(struct rekvm_timer *t, void (*callback)(void *data), void *data)
{
	hrtimer_init(&t->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	t->timer.function = expired;
	t->expired = callback;
	t->data = data;
}

void rekvm_timer_arm(struct rekvm_timer *t, s64 deadline_ns)
{
	hrtimer_start(&t->timer, ns_to_ktime(deadline_ns), HRTIMER_MODE_ABS_HARD);
}

void rekvm_timer_try_cancel(struct rekvm_timer *t)
{
	hrtimer_try_to_cancel(&t->timer);
}

/* Waits for a callback that is running. */
void rekvm_timer_cancel(struct rekvm_timer *t)
{
	hrtimer_cancel(&t->timer);
}

u64 rekvm_now_ns(void)
{
	return ktime_get_ns();
}

u64 rekvm_wall_clock_ns(void)
{
	return ktime_get_real_ns();
}

u32 rekvm_tsc_khz(void)
{
	return tsc_khz;
}

void rekvm_random(void *to, size_t bytes)
{
	get_random_bytes(to, bytes);
}

void rekvm_log_error(const char *text, int bytes)
{
	pr_err_ratelimited("%.*s\n", bytes, text);
}

void rekvm_log_warning(const char *text, int bytes)
{
	pr_warn_ratelimited("%.*s\n", bytes, text);
}

void rekvm_log_info(const char *text, int bytes)
{
	pr_info_ratelimited("%.*s\n", bytes, text);
}

/* Says what is wrong; the caller then traps. */
void rekvm_panic(const char *text, int bytes, u32 line)
{
	pr_emerg("panic at %.*s:%u\n", bytes, text, line);
}
