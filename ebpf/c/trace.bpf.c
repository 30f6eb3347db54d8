// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Which requests some disks had, in order, with who made them: one event for each that is completed, in a ring that somebody reads, or not.
//
// Disks are told by their names, so that the first request of one that does not exist yet is here, too. Nobody has to run meanwhile: when the ring is full, what comes
// is counted as lost, and what came first stays.
//
// Sizes of the maps, and the names of the disks, are set by who loads this.
#include "kernel.h"
#include "devices.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Operations, as events have them.
#define OP_READ 0
#define OP_WRITE 1 // discard and write-zeroes, too

// PREFIX is how many bytes of the name of a disk are compared.
#define PREFIX 15

// asked is who made a request, by the request while it is under way.
struct asked {
	__u64 issued; // ns, CLOCK_MONOTONIC
	__u64 sector;
	__u64 cgroup;
	__u32 bytes;
	__u32 pid;
	char comm[TASK_COMM_LEN];
};

struct event {
	__u64 began; // ns, CLOCK_MONOTONIC
	__u64 nanos; // until it was completed
	__u64 sector;
	__u64 diskseq;
	__u64 cgroup; // 0: not known
	__u32 bytes;
	__u32 minor;
	__u32 pid; // 0: not known
	__u8 op;
	__u8 mark; // see devices.h; 0: nothing was said
	__u8 failed;
	__u8 reserved;
	char comm[TASK_COMM_LEN];
};

const struct event *unused __attribute__((unused)); // for the description of its type

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct asked);
} asking SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct counts {
	__u64 events;
	__u64 lost;    // events for which the ring had no room
	__u64 unasked; // requests for whose maker there was no room: their events do not have him
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counts SEC(".maps");

const volatile char prefix[PREFIX + 1] = "ublkb"; // of the names of the disks

// traced tells whether a request is of one of the disks, and of an operation that has events.
static __always_inline int traced(struct request *rq, __u8 *op)
{
	struct gendisk *disk = rq->q->disk;
	switch (rq->cmd_flags & REQ_OP_MASK) {
	case REQ_OP_READ:
		*op = OP_READ;
		break;
	case REQ_OP_WRITE:
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		*op = OP_WRITE;
		break;
	default:
		return 0;
	}
#pragma unroll
	for (int i = 0; i < PREFIX; i++) {
		if (!prefix[i])
			return 1;
		if (disk->disk_name[i] != prefix[i])
			return 0;
	}
	return 1;
}

static __always_inline __u64 *mark_of(struct request *rq)
{
	__u32 index;
	struct device *d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return 0;
	return bpf_map_lookup_elem(&marks, &index);
}

static __always_inline struct counts *all_counts(void)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&counts, &key);
}

// Where there is no scheduler, a request is issued by who made it.
SEC("tp_btf/block_rq_issue")
int issue_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct asked a = {};
	struct counts *c;
	__u64 key = (__u64)rq, *mark;
	__u8 op;
	if (!traced(rq, &op))
		return 0;
	a.issued = bpf_ktime_get_ns();
	a.sector = rq->__sector;
	a.bytes = rq->__data_len;
	a.cgroup = bpf_get_current_cgroup_id();
	a.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(a.comm, sizeof(a.comm));
	mark = mark_of(rq);
	if (mark)
		*mark = 0; // of the request before this one
	if (bpf_map_update_elem(&asking, &key, &a, BPF_ANY) && (c = all_counts()))
		__sync_fetch_and_add(&c->unasked, 1);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int end_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct gendisk *disk;
	struct counts *c;
	struct asked *a;
	struct event *e;
	__u64 key = (__u64)rq, *mark, began;
	__u32 length;
	__u8 op;
	if (!traced(rq, &op))
		return 0;
	length = rq->__data_len;
	if ((__u32)ctx[2] < length || !length) // a part of a request; what the kernel makes flushes of
		return 0;
	c = all_counts();
	if (!c)
		return 0;
	a = bpf_map_lookup_elem(&asking, &key);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&c->lost, 1);
		goto forget;
	}
	__sync_fetch_and_add(&c->events, 1);
	disk = rq->q->disk;
	began = rq->start_time_ns; // 0 without iostats
	e->sector = rq->__sector;
	e->bytes = length;
	e->diskseq = disk->diskseq;
	e->minor = disk->first_minor;
	e->cgroup = 0;
	e->pid = 0;
	if (a) {
		if (!began)
			began = a->issued;
		e->sector = a->sector;
		e->bytes = a->bytes;
		e->cgroup = a->cgroup;
		e->pid = a->pid;
		__builtin_memcpy(e->comm, a->comm, sizeof(e->comm));
	} else {
		__builtin_memset(e->comm, 0, sizeof(e->comm));
	}
	e->nanos = bpf_ktime_get_ns();
	if (!began)
		began = e->nanos;
	e->began = began;
	e->nanos -= began;
	e->op = op;
	e->failed = (ctx[1] & 0xff) != 0;
	e->reserved = 0;
	mark = mark_of(rq);
	e->mark = mark ? *mark | *mark >> COUNTED_SHIFT : 0;
	bpf_ringbuf_submit(e, 0);
forget:
	if (a)
		bpf_map_delete_elem(&asking, &key);
	return 0;
}
