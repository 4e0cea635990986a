// SPDX-License-Identifier: MIT OR GPL-2.0
/* Files in debugfs, which show a number each. */
#include <linux/debugfs.h>
#include <linux/sched.h>

#include "rekvm.h"

static struct dentry *root;

static int shown_get(void *shown, u64 *value)
{
	*value = rekvm_rs_statistic(shown);
	return 0;
}

DEFINE_DEBUGFS_ATTRIBUTE(shown_fops, shown_get, NULL, "%llu\n");

/* The folder of all, which is there from now on. */
struct dentry *rekvm_statistics_root(void)
{
	root = debugfs_create_dir("kvm", NULL);
	return root;
}

/* A VM's; none if the folder of all is not there yet. */
struct dentry *rekvm_statistics_folder(u32 number)
{
	char name[32];

	snprintf(name, sizeof(name), "%d-%u", task_pid_nr(current), number);
	return root ? debugfs_create_dir(name, root) : ERR_PTR(-ENOENT);
}

void rekvm_statistics_file(struct dentry *folder, const char *name, void *shown)
{
	debugfs_create_file_unsafe(name, 0444, folder, shown, &shown_fops);
}

/* With all that is in it; nobody reads it any more. */
void rekvm_statistics_remove(struct dentry *folder)
{
	debugfs_remove(folder);
}
