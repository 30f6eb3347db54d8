// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What programs read of files and disks through the page cache, by device number. What a disk had to give for that is counted in readers.bpf.c: the rest was in RAM.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct cached {
	__u64 read_bytes; // by read() and its like
	__u64 faults;     // pages of mapped files that were touched and not mapped yet
};

// By the device number, as the kernel has it: major << 20 | minor.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cached);
} cached SEC(".maps");

#define S_IFMT 0170000
#define S_IFBLK 0060000

static __always_inline struct cached *cached_of(struct file *file)
{
	struct inode *inode = file->f_mapping->host;
	struct cached *c;
	__u32 dev = (inode->i_mode & S_IFMT) == S_IFBLK ? inode->i_rdev : inode->i_sb->s_dev;
	c = bpf_map_lookup_elem(&cached, &dev);
	if (!c) {
		struct cached none = {};
		bpf_map_update_elem(&cached, &dev, &none, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&cached, &dev);
	}
	return c;
}

// ssize_t filemap_read(struct kiocb *, struct iov_iter *, ssize_t already_read): what it returns includes what had been read already.
SEC("fexit/filemap_read")
int count_read(__u64 *ctx)
{
	struct kiocb *iocb = (struct kiocb *)ctx[0];
	__s64 already = ctx[2], all = ctx[3];
	struct cached *c;
	if (all <= already)
		return 0;
	c = cached_of(iocb->ki_filp);
	if (c)
		__sync_fetch_and_add(&c->read_bytes, all - already);
	return 0;
}

// vm_fault_t filemap_fault(struct vm_fault *)
SEC("fentry/filemap_fault")
int count_fault(__u64 *ctx)
{
	struct vm_fault *fault = (struct vm_fault *)ctx[0];
	struct cached *c = cached_of(fault->vma->vm_file);
	if (c)
		__sync_fetch_and_add(&c->faults, 1);
	return 0;
}
