// SPDX-License-Identifier: MIT OR GPL-2.0
/* Memory: the hypervisor's own, and accessors of the client's. */
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/io.h>

#include "rekvm.h"

bool rekvm_preemptible(void)
{
	return preemptible();
}

/* Charged to the client in whose system call we are. */
void *rekvm_alloc(size_t bytes, bool may_sleep)
{
	return may_sleep ? kvmalloc(bytes, GFP_KERNEL_ACCOUNT) : kmalloc(bytes, GFP_NOWAIT | __GFP_ACCOUNT);
}

void rekvm_free(void *at)
{
	if (is_vmalloc_addr(at))
		rekvm_may_sleep();
	kvfree(at);
}

/* Zeroed memory that can be mapped page by page. */
void *rekvm_vmalloc(size_t bytes)
{
	rekvm_may_sleep();
	return __vmalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_HIGHMEM);
}

void rekvm_vfree(void *at)
{
	rekvm_may_sleep();
	vfree(at);
}

u64 rekvm_vmalloc_hpa(u64 at)
{
	return page_to_phys(vmalloc_to_page((void *)at));
}

/* Contiguous zeroed pages. */
void *rekvm_pages(size_t bytes, bool below_4g)
{
	rekvm_may_sleep();
	return alloc_pages_exact(bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO | (below_4g ? GFP_DMA32 : 0));
}

void rekvm_free_pages(void *at, size_t bytes)
{
	free_pages_exact(at, bytes);
}

u64 rekvm_hpa(void *at)
{
	return virt_to_phys(at);
}

void *rekvm_at_hpa(u64 hpa)
{
	return phys_to_virt(hpa);
}

/* Single words of the client. Zero, or an error number. */
#define LOAD(bits)                                                                                                     \
	int rekvm_load##bits(u64 at, u##bits *value)                                                                   \
	{                                                                                                              \
		rekvm_may_sleep();                                                                                     \
		return get_user(*value, (u##bits __user *)at);                                                         \
	}                                                                                                              \
	int rekvm_load##bits##_atomic(u64 at, u##bits *value)                                                          \
	{                                                                                                              \
		int error;                                                                                             \
                                                                                                                       \
		pagefault_disable();                                                                                   \
		error = get_user(*value, (u##bits __user *)at);                                                        \
		pagefault_enable();                                                                                    \
		return error;                                                                                          \
	}                                                                                                              \
	int rekvm_store##bits(u64 at, u##bits value)                                                                   \
	{                                                                                                              \
		rekvm_may_sleep();                                                                                     \
		return put_user(value, (u##bits __user *)at);                                                          \
	}                                                                                                              \
	/* Zero: *old says what was there; that it was not the old value is no error. */                               \
	int rekvm_cmpxchg##bits(u64 at, u##bits *old, u##bits new)                                                     \
	{                                                                                                              \
		if (!user_access_begin((u##bits __user *)at, sizeof(u##bits)))                                         \
			return -EFAULT;                                                                                \
		unsafe_try_cmpxchg_user((u##bits __user *)at, old, new, fault);                                        \
		user_access_end();                                                                                     \
		return 0;                                                                                              \
	fault:                                                                                                         \
		user_access_end();                                                                                     \
		return -EFAULT;                                                                                        \
	}
LOAD(8)
LOAD(16)
LOAD(32)
LOAD(64)

/* `words`: the old value, low half first, which becomes what was there; then the new one. */
int rekvm_cmpxchg128(u64 at, u64 *words)
{
	int error = 0;

	if (!user_access_begin((u64 __user *)at, 16))
		return -EFAULT;
	asm volatile("1: lock cmpxchg16b (%[at])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[error])
		     : [error] "+r"(error), "+a"(words[0]), "+d"(words[1])
		     : [at] "r"(at), "b"(words[2]), "c"(words[3])
		     : "memory");
	user_access_end();
	return error;
}

/* How many bytes were not copied. */
size_t rekvm_copy_from_client(void *to, u64 at, size_t bytes)
{
	rekvm_may_sleep();
	return copy_from_user(to, (const void __user *)at, bytes);
}

size_t rekvm_copy_to_client(u64 at, const void *from, size_t bytes)
{
	rekvm_may_sleep();
	return copy_to_user((void __user *)at, from, bytes);
}

/* The page behind the client's address, brought in; one reference is the caller's. Null: there is none. */
struct page *rekvm_client_page(u64 at, bool write)
{
	struct page *page;

	return get_user_pages_unlocked(at, 1, &page, write ? FOLL_WRITE : 0) == 1 ? page : NULL;
}

/* The same if it is there and, for `write`, writable, without waiting for anything. */
struct page *rekvm_client_page_now(u64 at, bool write)
{
	struct page *page;

	return get_user_page_fast_only(at, write ? FOLL_WRITE : 0, &page) ? page : NULL;
}

/* How many pages from the client's address on are there and writable, each with a reference that is the caller's. */
int rekvm_client_pages_now(u64 at, int count, struct page **pages)
{
	return get_user_pages_fast_only(at, count, FOLL_WRITE, pages);
}

void rekvm_put_page(struct page *page)
{
	put_page(page);
}

u64 rekvm_page_hpa(struct page *page)
{
	return page_to_phys(page);
}

bool rekvm_page_is_compound(struct page *page)
{
	return PageCompound(page);
}

/* Whether the client's tables map `at` by an entry for 2 MiB or more. Tables that are walked stay while interrupts are off. */
bool rekvm_client_page_is_large(u64 at)
{
	unsigned long flags;
	bool large = false;
	pgd_t *pgd;
	p4d_t *p4d;
	pud_t *pud, seen_pud;
	pmd_t seen_pmd;

	local_irq_save(flags);
	pgd = pgd_offset(current->mm, at);
	if (!pgd_present(READ_ONCE(*pgd)))
		goto out;
	p4d = p4d_offset(pgd, at);
	if (!p4d_present(READ_ONCE(*p4d)))
		goto out;
	pud = pud_offset(p4d, at);
	seen_pud = READ_ONCE(*pud);
	if (!pud_present(seen_pud))
		goto out;
	large = pud_leaf(seen_pud);
	if (!large) {
		seen_pmd = READ_ONCE(*pmd_offset(&seen_pud, at));
		large = pmd_present(seen_pmd) && pmd_leaf(seen_pmd);
	}
out:
	local_irq_restore(flags);
	return large;
}

bool rekvm_page_is_anonymous(struct page *page)
{
	return PageAnon(page);
}

void rekvm_page_dirty(struct page *page)
{
	SetPageDirty(page);
}

/*
 * The client's address lies in a mapping of device memory: brings it in, and says where it is. Zero, or an error
 * number.
 */
int rekvm_client_frame(u64 at, bool write, u64 *hpa, bool *writable)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	spinlock_t *lock;
	pte_t *pte;
	int error;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, at);
	error = vma && vma->vm_flags & (VM_IO | VM_PFNMAP) ? 0 : -EFAULT;
	if (!error)
		error = follow_pte(mm, at, &pte, &lock);
	if (error && vma && vma->vm_flags & (VM_IO | VM_PFNMAP)) {
		bool unlocked = false;

		error = fixup_user_fault(mm, at, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		error = error ? error : unlocked ? -EAGAIN : follow_pte(mm, at, &pte, &lock);
	}
	if (!error) {
		*hpa = (u64)pte_pfn(*pte) << PAGE_SHIFT;
		*writable = pte_write(*pte);
		pte_unmap_unlock(pte, lock);
	}
	mmap_read_unlock(mm);
	return error;
}

/* The address space of the calling thread, to be compared only. */
const void *rekvm_current_mm(void)
{
	return current->mm;
}

/* A listener to changes of the client's address space. */
struct rekvm_listener {
	struct mmu_notifier notifier;
	void *object;
};

const size_t rekvm_listener_size = sizeof(struct rekvm_listener);

static void *object_of(struct mmu_notifier *notifier)
{
	return container_of(notifier, struct rekvm_listener, notifier)->object;
}

static int range_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	rekvm_rs_invalidate_begin(object_of(notifier), range->start, range->end);
	return 0;
}

static void range_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	rekvm_rs_invalidate_end(object_of(notifier));
}

static int clear_young(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	return rekvm_rs_young(object_of(notifier), start, end, true);
}

static int test_young(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long at)
{
	return rekvm_rs_young(object_of(notifier), at, at + PAGE_SIZE, false);
}

static void all_goes(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	rekvm_rs_invalidate_begin(object_of(notifier), 0, TASK_SIZE_MAX);
	rekvm_rs_invalidate_end(object_of(notifier));
}

static const struct mmu_notifier_ops listener_ops = {
	.invalidate_range_start = range_start,
	.invalidate_range_end = range_end,
	.clear_flush_young = clear_young,
	.clear_young = clear_young,
	.test_young = test_young,
	.release = all_goes,
};

/* Zero, or an error number. */
int rekvm_listen(struct rekvm_listener *listener, void *object)
{
	listener->notifier.ops = &listener_ops;
	listener->object = object;
	return mmu_notifier_register(&listener->notifier, current->mm);
}

void rekvm_unlisten(struct rekvm_listener *listener)
{
	mmu_notifier_unregister(&listener->notifier, listener->notifier.mm);
}

static unsigned long shrinkable(struct shrinker *shrinker, struct shrink_control *control)
{
	return rekvm_rs_shrinkable();
}

static unsigned long shrink(struct shrinker *shrinker, struct shrink_control *control)
{
	return rekvm_rs_shrink(control->nr_to_scan);
}

/* A page of tables is dearer than it looks: the guest faults for each of its entries. */
static struct shrinker rekvm_shrinker = {
	.count_objects = shrinkable,
	.scan_objects = shrink,
	.seeks = DEFAULT_SEEKS * 10,
};

/* Zero, or an error number. */
int rekvm_shrinker_register(void)
{
	return register_shrinker(&rekvm_shrinker, "rekvm-tables");
}

void rekvm_shrinker_unregister(void)
{
	unregister_shrinker(&rekvm_shrinker);
}
