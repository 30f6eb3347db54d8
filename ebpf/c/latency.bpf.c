// SPDX-License-Identifier: MIT OR GPL-2.0-only
// How long requests of some disks take, by operation and by where the data came from.
//
// Who serves a disk enters it in `devices` and says in `marks`, before it answers a request, where the data came from. Both are shared memory to it, as are
// the histograms: it makes no call of bpf() for any of that. What it writes there is not trusted: each number is compared with the map that it leads to.
//
// One program is enough: the kernel notes in each request when it was made (blk_mq_rq_ctx_init and blk_rq_init, Linux 6.1 to 6.18), for its own statistics. Programs where
// requests are inserted, issued and merged, and a map of their times, counted the same requests and took more CPU.
//
// Sizes of the maps are set by who loads this; those here are the least.
#include "kernel.h"
#include "devices.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

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

struct histogram {
	__u64 nanos;  // of all requests together
	__u64 mixed;  // requests with parts from several sources, counted under the farthest
	__u64 errors; // requests that failed
	__u64 buckets[BUCKETS];
};

// By ((slot * shards + shard) * OPS + operation) * SOURCES + source. CPUs share shards.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct histogram);
} histograms SEC(".maps");

const volatile __u32 shard_mask = 0; // shards - 1

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
	__u32 index, key, length, b;
	__u64 *mark, said, began, nanos;
	struct histogram *h;
	int op;
	struct device *d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return 0;
	op = operation(rq->cmd_flags);
	length = rq->__data_len;
	// A part of a request; and what the kernel makes flushes of, after the flush or the write that has been counted.
	if (op < 0 || (__u32)ctx[2] < length || (op <= OP_WRITE && !length))
		return 0;
	began = rq->start_time_ns;
	mark = bpf_map_lookup_elem(&marks, &index);
	if (!mark || !began) // without iostats, the kernel notes no times
		return 0;
	nanos = bpf_ktime_get_ns() - began;
	said = *mark & 0xff;
	*mark = said << COUNTED_SHIFT;
	key = d->slot * (shard_mask + 1) + (bpf_get_smp_processor_id() & shard_mask);
	key = (key * OPS + op) * SOURCES + source(said);
	h = bpf_map_lookup_elem(&histograms, &key);
	if (!h)
		return 0;
	__sync_fetch_and_add(&h->nanos, nanos);
	if (said & (said - 1))
		__sync_fetch_and_add(&h->mixed, 1);
	if (ctx[1] & 0xff)
		__sync_fetch_and_add(&h->errors, 1);
	b = bucket(nanos);
	if (b < BUCKETS)
		__sync_fetch_and_add(&h->buckets[b], 1);
	return 0;
}
