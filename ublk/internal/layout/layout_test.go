package layout

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

var (
	u32 = &btf.Int{Name: "u32", Size: 4}
	u64 = &btf.Int{Name: "u64", Size: 8}
)

// kernel is struct { u32 a; union { u32 b; u32 c; }; u64 d; }.
func kernel() *btf.Struct {
	union := &btf.Union{Size: 4, Members: []btf.Member{{Name: "b", Type: u32}, {Name: "c", Type: u32}}}
	return &btf.Struct{Name: "thing", Size: 16, Members: []btf.Member{
		{Name: "a", Type: u32}, {Type: union, Offset: 32}, {Name: "d", Type: u64, Offset: 64},
	}}
}

func TestCompare(t *testing.T) {
	type good struct {
		A, C uint32
		D    uint64
	}
	type longer struct {
		good
		E uint64
	}
	for _, c := range []struct {
		name string
		pair Pair
		want string // part of the only problem; "": none
	}{
		{"same", Pair{Value: good{}, Fields: []string{"a", "c", "d"}}, ""},
		{"unnamed", Pair{Value: good{}, Fields: []string{"a", "", "d"}}, ""},
		{"swapped", Pair{Value: good{}, Fields: []string{"c", "c", "d"}}, "c has 4 bytes at 4, our A 4 at 0"},
		{"missing", Pair{Value: good{}, Fields: []string{"a", "x", "d"}}, "no field x"},
		{"unlisted", Pair{Value: good{}, Fields: []string{"a"}}, "1 fields are named, ours has 3"},
		{"narrow", Pair{Value: struct {
			A, C, D uint32
			_       uint32
		}{}, Fields: []string{"a", "b", "d", ""}}, "d has 8 bytes at 8, our D 4 at 8"},
		{"longer", Pair{Value: longer{}, Fields: []string{"", "e"}}, "no field e"},
		{"prefix", Pair{Value: longer{}, Fields: []string{"", "e"}, Prefix: true}, ""},
		{"short", Pair{Value: struct{ A uint32 }{}, Fields: []string{"a"}, Prefix: true}, "has 16 bytes, ours 4"},
	} {
		problems := c.pair.compare(kernel())
		if c.want == "" && len(problems) > 0 || c.want != "" && (len(problems) == 0 || !strings.Contains(problems[0], c.want)) {
			t.Errorf("%s: %q, want %q", c.name, problems, c.want)
		}
	}
}
