// SPDX-License-Identifier: MIT OR GPL-2.0
/* Descriptors: /dev/kvm, and anonymous inodes for VMs, vCPUs and statistics. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "rekvm.h"

static long device_ioctl(struct file *file, unsigned int nr, unsigned long arg)
{
	return rekvm_rs_device_ioctl(nr, arg);
}

/* Structures are the same for 32-bit clients, whose pointers are extended with zeros. */
const struct file_operations rekvm_device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static vm_fault_t answer(struct vm_fault *vmf, struct page *page)
{
	if (!page)
		return VM_FAULT_SIGBUS;
	vmf->page = page;
	return 0;
}

static vm_fault_t machine_fault(struct vm_fault *vmf)
{
	return answer(vmf, rekvm_rs_vm_page(vmf->vma->vm_file->private_data, vmf->pgoff));
}

static const struct vm_operations_struct machine_vm_ops = {
	.fault = machine_fault,
};

/* Puts the page behind an address that vmalloc has given into a mapping that is being made, `index` pages into it. */
void rekvm_vm_insert(struct vm_area_struct *vma, unsigned long index, u64 at)
{
	/* What cannot be put there now comes by a fault. */
	if (vm_insert_page(vma, vma->vm_start + index * PAGE_SIZE, vmalloc_to_page((void *)at)))
		return;
}

static int machine_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &machine_vm_ops;
	if (vma->vm_flags & VM_SHARED)
		rekvm_rs_vm_mapped(file->private_data, vma, vma->vm_pgoff, vma_pages(vma));
	return 0;
}

static long machine_ioctl(struct file *file, unsigned int nr, unsigned long arg)
{
	return rekvm_rs_vm_ioctl(file->private_data, nr, arg);
}

static int machine_release(struct inode *inode, struct file *file)
{
	rekvm_rs_vm_release(file->private_data);
	return 0;
}

static const struct file_operations machine_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = machine_ioctl,
	.compat_ioctl = machine_ioctl,
	.mmap = machine_mmap,
	.release = machine_release,
	.llseek = noop_llseek,
};

static vm_fault_t vcpu_fault(struct vm_fault *vmf)
{
	return answer(vmf, rekvm_rs_vcpu_page(vmf->vma->vm_file->private_data, vmf->pgoff));
}

static const struct vm_operations_struct vcpu_vm_ops = {
	.fault = vcpu_fault,
};

static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &vcpu_vm_ops;
	return 0;
}

static long vcpu_ioctl(struct file *file, unsigned int nr, unsigned long arg)
{
	return rekvm_rs_vcpu_ioctl(file->private_data, nr, arg);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	/* One that was given back has none. */
	if (file->private_data)
		rekvm_rs_vcpu_release(file->private_data);
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vcpu_ioctl,
	.compat_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.release = vcpu_release,
	.llseek = noop_llseek,
};

static ssize_t stats_read(struct file *file, char __user *to, size_t bytes, loff_t *offset)
{
	ssize_t done = rekvm_rs_stats_read(file->private_data, (unsigned long)to, bytes, *offset);

	if (done > 0)
		*offset += done;
	return done;
}

static int stats_release(struct inode *inode, struct file *file)
{
	rekvm_rs_stats_release(file->private_data);
	return 0;
}

static const struct file_operations stats_fops = {
	.owner = THIS_MODULE,
	.read = stats_read,
	.release = stats_release,
	.llseek = noop_llseek,
};

/* A new descriptor of the calling process, or an error number. */
int rekvm_vm_fd(void *object)
{
	return anon_inode_getfd("kvm-vm", &machine_fops, object, O_RDWR | O_CLOEXEC);
}

/* A descriptor that nobody can use yet, or an error number. */
int rekvm_vcpu_fd_reserve(unsigned int id, struct file **file)
{
	char name[32];
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	snprintf(name, sizeof(name), "kvm-vcpu:%u", id);
	*file = anon_inode_getfile(name, &vcpu_fops, NULL, O_RDWR);
	if (IS_ERR(*file)) {
		put_unused_fd(fd);
		return PTR_ERR(*file);
	}
	return fd;
}

void rekvm_vcpu_fd_install(int fd, struct file *file, void *object)
{
	file->private_data = object;
	fd_install(fd, file);
}

void rekvm_vcpu_fd_give_back(int fd, struct file *file)
{
	put_unused_fd(fd);
	fput(file);
}

int rekvm_stats_fd(void *object)
{
	struct file *file;
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	file = anon_inode_getfile("kvm-stats", &stats_fops, object, O_RDONLY);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	/* It can be read anywhere (pread), though there is nothing to seek in. */
	file->f_mode |= FMODE_PREAD;
	fd_install(fd, file);
	return fd;
}

/* The page behind an address that vmalloc has given, with a reference for a client's mapping. */
struct page *rekvm_vmalloc_page(u64 at)
{
	struct page *page = vmalloc_to_page((void *)at);

	get_page(page);
	return page;
}
