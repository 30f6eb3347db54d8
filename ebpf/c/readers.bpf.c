// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Who reads and writes disks, and how much of that came from elsewhere: by process and by cgroup.
//
// Who makes a request is known where it is issued, if no scheduler keeps it for somebody else to issue, and is remembered by its tag until it is completed. Where its data
// came from is known then: see latency.bpf.c, which shares `devices` and `marks` with this.
//
// Whom there is no room for is the one that was heard of least lately. What he did stays in the totals of the disk: the difference to all who are there is what was forgotten.
#include "kernel.h"
#include "devices.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Places that are not this machine, by the bits of a mark (see latency.bpf.c): peers, appliances, roots.
#define FAR_SHIFT 5
#define FAR_SOURCES 3

// A part of what a disk did.
struct did {
	__u64 reads;
	__u64 read_bytes;
	__u64 writes;
	__u64 write_bytes;
	__u64 filled_bytes; // those of reads that went into the page cache
	__u64 misses[FAR_SOURCES]; // reads with data from there, each under the farthest
	__u64 miss_bytes[FAR_SOURCES]; // all that such reads read
	char comm[TASK_COMM_LEN]; // of a process
};

struct process {
	__u64 diskseq;
	__u64 started; // tells processes apart that had the same number; 0: not known
	__u32 pid;
	__u32 minor;
};

struct cgroup_of_disk {
	__u64 diskseq;
	__u64 id; // 0: not known
	__u32 minor;
	__u32 zero;
};

// asker is who made the request that has a tag.
struct asker {
	__u64 began; // as in the request: with another one, this is of an earlier request
	__u64 started;
	__u64 cgroup;
	__u32 pid;
	__u32 fills; // the page cache
	char comm[TASK_COMM_LEN];
};

// By base + queue * depth + tag, as marks.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct asker);
} askers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct process);
	__type(value, struct did);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct cgroup_of_disk);
	__type(value, struct did);
} cgroups SEC(".maps");

// By diskseq.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct did);
} totals SEC(".maps");

// fills tells whether a request reads into the page cache: its pages belong to a file or a disk then, and else to a process, or to nobody.
static __always_inline __u32 fills(struct request *rq)
{
	struct page *page = rq->bio->bi_io_vec->bv_page;
	// As numbers: the verifier has bits of pointers taken for no such thing.
	unsigned long mapping = 0, head = 0;
	bpf_probe_read_kernel(&head, sizeof(head), &page->compound_head);
	if (head & 1) // a part of a larger one
		page = (struct page *)(head - 1);
	bpf_probe_read_kernel(&mapping, sizeof(mapping), &page->mapping);
	return mapping && !(mapping & 3); // PAGE_MAPPING_FLAGS
}

SEC("tp_btf/block_rq_issue")
int note_asker(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct task_struct *leader;
	struct device *d;
	struct asker *a;
	__u32 index, op = rq->cmd_flags & REQ_OP_MASK;
	__u64 *mark;
	if (op != REQ_OP_READ && op != REQ_OP_WRITE)
		return 0;
	d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return 0;
	a = bpf_map_lookup_elem(&askers, &index);
	mark = bpf_map_lookup_elem(&marks, &index);
	if (!a || !mark)
		return 0;
	*mark &= (1 << COUNTED_SHIFT) - 1; // the rest is of the request before this one
	leader = bpf_get_current_task_btf()->group_leader;
	a->began = rq->start_time_ns;
	a->started = leader->start_time;
	a->pid = leader->pid;
	bpf_probe_read_kernel(a->comm, sizeof(a->comm), leader->comm);
	a->cgroup = bpf_get_current_cgroup_id();
	a->fills = op == REQ_OP_READ && fills(rq);
	return 0;
}

// add counts a request under a key of a map.
static __always_inline void add(void *map, void *key, struct asker *a, __u32 op, __u32 bytes, __u32 far)
{
	struct did *v = bpf_map_lookup_elem(map, key);
	if (!v) {
		struct did none = {};
		__builtin_memcpy(none.comm, a->comm, sizeof(none.comm));
		bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
		v = bpf_map_lookup_elem(map, key);
		if (!v)
			return;
	}
	if (op == REQ_OP_WRITE) {
		__sync_fetch_and_add(&v->writes, 1);
		__sync_fetch_and_add(&v->write_bytes, bytes);
		return;
	}
	__sync_fetch_and_add(&v->reads, 1);
	__sync_fetch_and_add(&v->read_bytes, bytes);
	if (a->fills)
		__sync_fetch_and_add(&v->filled_bytes, bytes);
	if (far < FAR_SOURCES) {
		__sync_fetch_and_add(&v->misses[far], 1);
		__sync_fetch_and_add(&v->miss_bytes[far], bytes);
	}
}

SEC("tp_btf/block_rq_complete")
int count_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct process process = {};
	struct cgroup_of_disk cgroup = {};
	struct asker asker = {}, *a;
	__u32 index, op = rq->cmd_flags & REQ_OP_MASK, bytes = rq->__data_len, far = FAR_SOURCES;
	__u64 *mark, said;
	struct device *d;
	// A part of a request; one that is for a flush alone; one that failed.
	if ((op != REQ_OP_READ && op != REQ_OP_WRITE) || (__u32)ctx[2] < bytes || !bytes || (ctx[1] & 0xff))
		return 0;
	d = device_of(rq);
	if (!d || !index_of(rq, d, &index))
		return 0;
	a = bpf_map_lookup_elem(&askers, &index);
	mark = bpf_map_lookup_elem(&marks, &index);
	if (!a || !mark)
		return 0;
	if (a->began == rq->start_time_ns)
		asker = *a;
	said = *mark | *mark >> COUNTED_SHIFT;
	if (said & 1 << (FAR_SHIFT + 2))
		far = 2;
	else if (said & 1 << (FAR_SHIFT + 1))
		far = 1;
	else if (said & 1 << FAR_SHIFT)
		far = 0;
	process.diskseq = cgroup.diskseq = d->diskseq;
	process.minor = cgroup.minor = rq->q->disk->first_minor;
	process.started = asker.started;
	process.pid = asker.pid;
	cgroup.id = asker.cgroup;
	add(&processes, &process, &asker, op, bytes, far);
	add(&cgroups, &cgroup, &asker, op, bytes, far);
	add(&totals, &process.diskseq, &asker, op, bytes, far);
	return 0;
}
