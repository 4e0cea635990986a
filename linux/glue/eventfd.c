// SPDX-License-Identifier: MIT OR GPL-2.0
/* Eventfds of the client. */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/wait.h>

#include "rekvm.h"

/* An error pointer if the descriptor is none, or no eventfd's. */
struct file *rekvm_eventfd_get(int fd)
{
	return eventfd_fget(fd);
}

void rekvm_eventfd_put(struct file *file)
{
	fput(file);
}

void rekvm_eventfd_signal(struct file *file)
{
	struct eventfd_ctx *ctx = eventfd_ctx_fileget(file);

	if (IS_ERR(ctx))
		return;
	eventfd_signal(ctx, 1);
	eventfd_ctx_put(ctx);
}

struct rekvm_watch {
	wait_queue_entry_t wait;
	poll_table table;
	struct eventfd_ctx *ctx;
	void (*signalled)(void *data);
	void *data;
};

const size_t rekvm_watch_size = sizeof(struct rekvm_watch);

/* With the lock of the eventfd's wait queue held and interrupts off. */
static int wake(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct rekvm_watch *watch = container_of(wait, struct rekvm_watch, wait);
	u64 count;

	if (!(key_to_poll(key) & EPOLLIN))
		return 0;
	eventfd_ctx_do_read(watch->ctx, &count);
	watch->signalled(watch->data);
	return 1;
}

static void queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	add_wait_queue(head, &container_of(table, struct rekvm_watch, table)->wait);
}

/* Zero, or an error number. */
int rekvm_watch_init(struct rekvm_watch *watch, struct file *file, void (*signalled)(void *data), void *data)
{
	watch->ctx = eventfd_ctx_fileget(file);
	if (IS_ERR(watch->ctx))
		return PTR_ERR(watch->ctx);
	init_waitqueue_func_entry(&watch->wait, wake);
	init_poll_funcptr(&watch->table, queue);
	watch->signalled = signalled;
	watch->data = data;
	return 0;
}

/* Begins to watch; whether the eventfd has been signalled already. */
bool rekvm_watch_begin(struct rekvm_watch *watch, struct file *file)
{
	return vfs_poll(file, &watch->table) & EPOLLIN;
}

/* Ends the watch, and takes the eventfd's count. No callback is running afterwards. */
void rekvm_watch_end(struct rekvm_watch *watch)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(watch->ctx, &watch->wait, &count);
}

void rekvm_watch_destroy(struct rekvm_watch *watch)
{
	eventfd_ctx_put(watch->ctx);
}
