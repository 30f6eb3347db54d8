// SPDX-License-Identifier: MIT OR GPL-2.0-only
// How long requests of some disks take, by operation and by where the data came from.
//
// Who serves a disk enters it in `devices` and says in `marks`, before it answers a request, where the data came from. Both are shared memory to it, as are
// the histograms: it makes no call of bpf() for any of that. What it writes there is not trusted: each number is compared with the map that it leads to.
//
// Sizes of the maps are set by who loads this; those here are the least.
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// MINORS is how many minor numbers are told apart. Two disks that differ by a multiple of it are not measured at the same time.
#define MINORS 4096

// Operations, as they are counted.
#define OP_READ 0
#define OP_WRITE 1
#define OP_FLUSH 2
#define OP_DISCARD 3 // and write-zeroes
#define OPS 4

// Sources: 0 where nothing was said, else one more than the number of the highest bit in the mark. A bit stands for a place that a part of the data came
// from; the higher, the farther.
#define SOURCES 9

// A bucket ends at 2^(BITS/2) times the end of the one before: the first at 2^-20 s, the last but one at 2^4 s. These are the bounds of
// Prometheus's native histograms of schema 1.
#define FIRST_OCTAVE 10 // of units of 2^-30 s
#define OCTAVES 24
#define BUCKETS (2 * OCTAVES + 2)

struct device {
	__u64 diskseq; // of the disk that is entered here; 0: none
	__u64 epoch;   // of the entry: what was begun in another is not this one's
	__u32 slot;    // whose histograms are its own
	__u32 base;    // of its tags
	__u32 queues;
	__u32 depth; // tags of each queue
};

struct histogram {
	__u64 nanos;  // of all requests together
	__u64 mixed;  // requests with parts from several sources, counted under the farthest
	__u64 errors; // requests that failed
	__u64 buckets[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MINORS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

// By base + queue * depth + tag.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

struct start {
	__u64 nanos; // when the request began; 0: none
	__u64 epoch;
};

// As marks, but nobody's other than the kernel's.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct start);
} starts SEC(".maps");

// By ((slot * shards + shard) * OPS + operation) * SOURCES + source. CPUs share shards.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct histogram);
} histograms SEC(".maps");

const volatile __u32 shard_mask = 0; // shards - 1

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

static __always_inline void begin(struct request *rq)
{
	__u32 index;
	struct start *start;
	struct device *d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return;
	start = bpf_map_lookup_elem(&starts, &index);
	// Not again where it is issued after it was inserted, or once more for the next process that serves the disk.
	if (!start || (start->nanos && start->epoch == d->epoch))
		return;
	start->epoch = d->epoch;
	start->nanos = bpf_ktime_get_ns();
}

SEC("tp_btf/block_rq_insert")
int insert_request(__u64 *ctx)
{
	begin((struct request *)ctx[0]);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int issue_request(__u64 *ctx)
{
	begin((struct request *)ctx[0]);
	return 0;
}

// merge_request forgets a request that another one has taken in: it is never completed itself.
SEC("tp_btf/block_rq_merge")
int merge_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	__u32 index;
	struct start *start;
	struct device *d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return 0;
	start = bpf_map_lookup_elem(&starts, &index);
	if (start)
		start->nanos = 0;
	return 0;
}

static __always_inline int operation(__u32 flags)
{
	switch (flags & REQ_OP_MASK) {
	case REQ_OP_READ:
		return OP_READ;
	case REQ_OP_WRITE:
		return OP_WRITE;
	case REQ_OP_FLUSH:
		return OP_FLUSH;
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		return OP_DISCARD;
	}
	return -1;
}

static __always_inline __u32 source(__u64 mark)
{
	__u32 bits = mark & 0xff, n = 0;
	if (bits >= 0x10) {
		n += 4;
		bits >>= 4;
	}
	if (bits >= 4) {
		n += 2;
		bits >>= 2;
	}
	return n + bits - (bits == 3);
}

static __always_inline __u32 bucket(__u64 nanos)
{
	__u64 t, x;
	__u32 octave = 0;
	if (nanos >> 43) // hours
		return BUCKETS - 1;
	t = nanos * 1125900 >> 20; // in units of 2^-30 s
	if (t >> (FIRST_OCTAVE + OCTAVES))
		return BUCKETS - 1;
	x = t >> FIRST_OCTAVE;
	if (!x)
		return 0;
	if (x >= 1 << 16) {
		octave += 16;
		x >>= 16;
	}
	if (x >= 1 << 8) {
		octave += 8;
		x >>= 8;
	}
	if (x >= 1 << 4) {
		octave += 4;
		x >>= 4;
	}
	if (x >= 1 << 2) {
		octave += 2;
		x >>= 2;
	}
	if (x >= 1 << 1)
		octave += 1;
	// The second half of an octave begins at 2^0.5.
	return 1 + 2 * octave + (t << (63 - FIRST_OCTAVE - octave) >> 32 >= 3037000500ULL);
}

SEC("tp_btf/block_rq_complete")
int complete_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	__u32 index, key, from, b;
	__u64 *mark, said, nanos;
	struct start *start;
	struct histogram *h;
	struct device *d = device_of(rq);
	int op;
	if (!d || !index_of(rq, d, &index))
		return 0;
	if ((__u32)ctx[2] < rq->__data_len) // a part of it
		return 0;
	start = bpf_map_lookup_elem(&starts, &index);
	mark = bpf_map_lookup_elem(&marks, &index);
	// One that began before the disk was entered is not measured.
	if (!start || !mark || !start->nanos || start->epoch != d->epoch)
		return 0;
	nanos = bpf_ktime_get_ns() - start->nanos;
	said = *mark;
	start->nanos = 0;
	*mark = 0;
	op = operation(rq->cmd_flags);
	if (op < 0)
		return 0;
	from = source(said);
	key = d->slot * (shard_mask + 1) + (bpf_get_smp_processor_id() & shard_mask);
	key = (key * OPS + op) * SOURCES + from;
	h = bpf_map_lookup_elem(&histograms, &key);
	if (!h)
		return 0;
	__sync_fetch_and_add(&h->nanos, nanos);
	said &= 0xff;
	if (said & (said - 1))
		__sync_fetch_and_add(&h->mixed, 1);
	if (ctx[1] & 0xff)
		__sync_fetch_and_add(&h->errors, 1);
	b = bucket(nanos);
	if (b < BUCKETS)
		__sync_fetch_and_add(&h->buckets[b], 1);
	return 0;
}
