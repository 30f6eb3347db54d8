// SPDX-License-Identifier: MIT OR GPL-2.0-only
// The table of disks and the marks of their requests, which who serves the disks has mapped. Programs of several objects share them.
#pragma once
#include "kernel.h"

// MINORS is how many minor numbers are told apart. Two disks that differ by a multiple of it are not measured at the same time.
#define MINORS 4096

struct device {
	__u64 diskseq; // of the disk that is entered here; 0: none
	__u32 slot;    // whose histograms are its own
	__u32 base;    // of its tags
	__u32 queues;
	__u32 depth; // tags of each queue
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MINORS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

// By base + queue * depth + tag. The lowest 8 bits are what was said of the request; the next 8 what had been said of it once it was counted, so that a program which
// runs after the one that counts finds it, too.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

#define COUNTED_SHIFT 8

// device_of returns the entry of the disk that a request is for, or nothing.
static __always_inline struct device *device_of(struct request *rq)
{
	struct gendisk *disk = rq->q->disk;
	__u32 minor = disk->first_minor;
	__u32 key = minor & (MINORS - 1);
	struct device *d = bpf_map_lookup_elem(&devices, &key);
	if (!d || !d->diskseq || d->diskseq != disk->diskseq)
		return 0;
	return d;
}

// index_of finds the place of a request's tag, and fails for what the entry says it cannot have.
static __always_inline int index_of(struct request *rq, struct device *d, __u32 *index)
{
	__u32 queue = rq->mq_hctx->queue_num, tag = rq->tag;
	if (queue >= d->queues || tag >= d->depth)
		return 0;
	*index = d->base + queue * d->depth + tag;
	return 1;
}
