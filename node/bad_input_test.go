package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice/node"
	"coppice/union"
)

// Every bad request is refused with a code, a message that names what is wrong and a hint, and leaves nothing
// half-made: no kernel device, no layer, no record.
func TestBadRequestsLeaveNothing(t *testing.T) {
	type badCase struct {
		name string
		code node.Code
		say  string // in the message
		with func(*rig, *node.CreateRequest)
	}
	cases := []badCase{
		{"name with a slash", node.CodeBadRequest, `"../x" is no device name`, func(_ *rig, q *node.CreateRequest) { q.Name = "../x" }},
		{"empty name", node.CodeBadRequest, "no device name", func(_ *rig, q *node.CreateRequest) { q.Name = "" }},
		{"long name", node.CodeBadRequest, "no device name", func(_ *rig, q *node.CreateRequest) { q.Name = strings.Repeat("x", 64) }},
		{"relative root", node.CodeBadRequest, "not an absolute path", func(_ *rig, q *node.CreateRequest) { q.Root = "root.img" }},
		{"relative store", node.CodeBadRequest, "not an absolute path", func(_ *rig, q *node.CreateRequest) { q.Store = "leaf" }},
		{"no root", node.CodeBadRoot, "no such file", func(r *rig, q *node.CreateRequest) { q.Root = r.file("nothing", -1) }},
		{"empty root", node.CodeBadRoot, "empty", func(r *rig, q *node.CreateRequest) { q.Root = r.file("empty", 0) }},
		{"root is a directory", node.CodeBadRoot, "is a directory", func(r *rig, q *node.CreateRequest) { q.Root = r.dir }},
		{"root is a terminal", node.CodeBadRoot, "neither a regular file nor a block device", func(_ *rig, q *node.CreateRequest) { q.Root = "/dev/null" }},
		{"no leaf", node.CodeBadLeaf, "no such file", func(r *rig, q *node.CreateRequest) { q.Store = r.file("nothing", -1) }},
		{"leaf is a directory", node.CodeBadLeaf, "is a directory", func(r *rig, q *node.CreateRequest) { q.Store = r.dir }},
		{"leaf not formatted", node.CodeNotFormatted, "not a coppice leaf store", func(r *rig, q *node.CreateRequest) { q.Store = r.file("zeros", storeSize) }},
		{"leaf too small", node.CodeNotFormatted, "not a coppice leaf store", func(r *rig, q *node.CreateRequest) { q.Store = r.file("small", 4096) }},
		{"leaf is the root", node.CodeBadRequest, "are the same file", func(_ *rig, q *node.CreateRequest) { q.Store = q.Root }},
		{"leaf cut off", node.CodeBadLeaf, "too small", func(r *rig, _ *node.CreateRequest) { check(r.t, os.Truncate(r.store, storeSize/2)) }},
		{"both superblocks damaged", node.CodeCorrupt, "corrupt", func(r *rig, _ *node.CreateRequest) { r.damage(64, 64<<10+64) }},
		{"both superblocks overwritten", node.CodeNotFormatted, "not a coppice leaf store", func(r *rig, _ *node.CreateRequest) { r.damage(0, 64<<10) }},
		{"size below the root", node.CodeBadRequest, "would cut off the root", func(_ *rig, q *node.CreateRequest) { q.SizeBytes = mib }},
		{"size not in blocks", node.CodeBadRequest, "not a multiple of 512", func(_ *rig, q *node.CreateRequest) { q.SizeBytes = 4*mib + 1 }},
		{"negative size", node.CodeBadRequest, "not a multiple", func(_ *rig, q *node.CreateRequest) { q.SizeBytes = -512 }},
		{"block size", node.CodeBadRequest, "neither 512 nor 4096", func(_ *rig, q *node.CreateRequest) { q.BlockSize = 1024 }},
		{"too many queues", node.CodeBadRequest, "4097 queues", func(_ *rig, q *node.CreateRequest) { q.Queues = 4097 }},
		{"too deep", node.CodeBadRequest, "depth of 5000", func(_ *rig, q *node.CreateRequest) { q.Depth = 5000 }},
		{"negative number", node.CodeBadRequest, "negative", func(_ *rig, q *node.CreateRequest) { q.ID = -2 }},
		{"number beyond minors", node.CodeBadRequest, "over", func(_ *rig, q *node.CreateRequest) { q.ID = 1 << 20 }},
		{"layer name", node.CodeBadRequest, "layer name", func(_ *rig, q *node.CreateRequest) { q.Layer = "a/b" }},
		{"driver fails", node.CodeFailed, "no luck", func(r *rig, _ *node.CreateRequest) { r.kernel.FailStart(errors.New("no luck")) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.start()
			req := r.request("web1")
			c.with(r, &req)
			before := snapshot(t, req.Store)
			_, err := r.client().Create(context.Background(), req)
			if err == nil {
				t.Fatal("accepted")
			}
			if node.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%s: %v", node.CodeOf(err), err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("message of several lines: %q", err)
			}
			if node.HintOf(err) == "" && c.code != node.CodeFailed && c.code != node.CodeBadRequest {
				t.Errorf("no hint with %v", err)
			}
			r.nothingLeft(req.Name)
			if c.code != node.CodeFailed && snapshot(t, req.Store) != before {
				t.Error("the leaf was written")
			}
			if c.code == node.CodeFailed && len(r.layers()) != 0 {
				t.Errorf("layers left: %v", r.layers())
			}
		})
	}
}

// file makes a file of zeros; a negative size makes none.
func (r *rig) file(name string, size int64) string {
	path := filepath.Join(r.dir, name)
	if size >= 0 {
		check(r.t, os.WriteFile(path, nil, 0o600))
		check(r.t, os.Truncate(path, size))
	}
	return path
}

// damage overwrites a block of the store at each offset.
func (r *rig) damage(offsets ...int64) {
	f, err := os.OpenFile(r.store, os.O_RDWR, 0)
	check(r.t, err)
	defer f.Close()
	for _, off := range offsets {
		_, err := f.WriteAt([]byte(strings.Repeat("\xa5", 4096)), off)
		check(r.t, err)
	}
}

// snapshot is the content of a file, or "".
func snapshot(t *testing.T, path string) string {
	t.Helper()
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	b, err := os.ReadFile(path)
	check(t, err)
	return string(b)
}

func TestOneDamagedSuperblockIsRepaired(t *testing.T) {
	for _, off := range []int64{0, 64 << 10} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			r := newRig(t)
			r.damage(off)
			r.start()
			r.create(r.request("web1"))
			_, err := r.client().Delete(context.Background(), "web1")
			check(t, err)
			rep, err := union.Check(r.store, union.CheckOptions{})
			check(t, err)
			if len(rep.Problems) != 0 {
				t.Errorf("not repaired: %v", rep.Problems)
			}
		})
	}
}

func TestLayerOfAnotherRoot(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	_, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
	check(t, os.WriteFile(r.root, []byte(strings.Repeat("diff", rootSize/4)), 0o600))
	_, err = r.client().Create(context.Background(), r.request("web1"))
	if node.CodeOf(err) != node.CodeOtherRoot || !strings.Contains(node.HintOf(err), "--leaf") {
		t.Fatalf("%s: %v (%s)", node.CodeOf(err), err, node.HintOf(err))
	}
	r.nothingLeft("web1")
	if l := r.layers(); len(l) != 1 {
		t.Errorf("layers: %v", l)
	}
}

func TestNameTaken(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	req := r.request("web1")
	req.Layer = "another"
	if _, err := r.client().Create(context.Background(), req); node.CodeOf(err) != node.CodeNameTaken {
		t.Fatal(err)
	}
	if state(t, r, "web1").State != node.StateLive || len(r.kernel.IDs()) != 1 {
		t.Error("the device of that name suffered")
	}
}

func TestLayerAndStoreInUse(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	req := r.request("web2")
	req.Layer = "web1"
	if _, err := r.client().Create(context.Background(), req); node.CodeOf(err) != node.CodeInUse {
		t.Errorf("layer in use: %v", err)
	}
	check(t, d.Stop())
	st, err := union.OpenStore(r.store, union.StoreOptions{})
	check(t, err)
	other := r.file("other", -1)
	_, err = union.Format(other, union.FormatOptions{SizeBytes: storeSize})
	check(t, err)
	check(t, st.Close())
	r.start()
	held, err := union.OpenStore(other, union.StoreOptions{})
	check(t, err)
	t.Cleanup(func() { check(t, held.Close()) })
	req = r.request("web3")
	req.Store = other
	if _, err := r.client().Create(context.Background(), req); node.CodeOf(err) != node.CodeInUse {
		t.Errorf("store in use: %v", err)
	}
	if r.hasRecord("web3") {
		t.Error("record left")
	}
}

func TestNumberTaken(t *testing.T) {
	r := newRig(t)
	r.start()
	check(t, r.kernel.Plant(0, 99, false))
	req := r.request("web1")
	req.ID = 0
	if _, err := r.client().Create(context.Background(), req); node.CodeOf(err) != node.CodeIDTaken {
		t.Fatal(err)
	}
	if r.hasRecord("web1") || len(r.layers()) != 0 {
		t.Error("something left")
	}
	req.ID = node.AutoID
	if d := r.create(req); d.ID != 1 {
		t.Errorf("number %d beside a device of another program", d.ID)
	}
	req = r.request("web2")
	req.ID = 1
	if _, err := r.client().Create(context.Background(), req); node.CodeOf(err) != node.CodeIDTaken || !strings.Contains(err.Error(), "web1") {
		t.Fatal(err)
	}
}

func TestNoSuchDevice(t *testing.T) {
	r := newRig(t)
	r.start()
	if _, err := r.client().Inspect(context.Background(), "nobody"); node.CodeOf(err) != node.CodeNotFound {
		t.Error(err)
	}
	if _, err := r.client().Delete(context.Background(), "nobody"); node.CodeOf(err) != node.CodeNotFound {
		t.Error(err)
	}
	if _, err := r.client().Inspect(context.Background(), "../../etc"); node.CodeOf(err) != node.CodeNotFound {
		t.Error(err)
	}
}
