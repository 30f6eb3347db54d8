// Package layout compares Go structures with the kernel's type information (BTF). It is for tests.
package layout

import (
	"fmt"
	"reflect"

	"github.com/cilium/ebpf/btf"
)

// Pair is a Go structure and the kernel's structure that it must look like.
type Pair struct {
	Kernel string // name of the kernel's struct
	Value  any    // zero value of ours
	// Fields are the kernel's names in the order of our fields; "" for one of ours that the kernel does not name.
	Fields []string
	// Prefix allows ours to have more fields at its end than the running kernel knows.
	Prefix bool
}

// Check returns all differences in name, offset and size of the fields, and in size of the whole.
func Check(spec *btf.Spec, p Pair) []string {
	var s *btf.Struct
	if err := spec.TypeByName(p.Kernel, &s); err != nil {
		return []string{fmt.Sprintf("struct %s: %v", p.Kernel, err)}
	}
	return p.compare(s)
}

func (p Pair) compare(s *btf.Struct) []string {
	var problems []string
	report := func(format string, args ...any) {
		problems = append(problems, "struct "+p.Kernel+": "+fmt.Sprintf(format, args...))
	}
	ours := reflect.TypeOf(p.Value)
	if len(p.Fields) != ours.NumField() {
		report("%d fields are named, ours has %d", len(p.Fields), ours.NumField())
		return problems
	}
	theirs := make(map[string]member)
	collect(s.Members, 0, theirs)
	// Not the size: it may count padding where a later kernel has a field.
	var end uintptr
	for _, m := range theirs {
		end = max(end, m.offset+m.size)
	}
	for i, name := range p.Fields {
		f := ours.Field(i)
		m, known := theirs[name]
		switch {
		case name == "" || !known && p.Prefix && f.Offset >= end:
		case !known:
			report("no field %s", name)
		case m.offset != f.Offset || m.size != f.Type.Size():
			report("%s has %d bytes at %d, our %s %d at %d", name, m.size, m.offset, f.Name, f.Type.Size(), f.Offset)
		}
	}
	if ours.Size() != uintptr(s.Size) && (!p.Prefix || ours.Size() < uintptr(s.Size)) {
		report("has %d bytes, ours %d", s.Size, ours.Size())
	}
	return problems
}

type member struct{ offset, size uintptr }

// collect gathers named members, those of unnamed structs and unions included.
func collect(members []btf.Member, base uintptr, into map[string]member) {
	for _, m := range members {
		at := base + uintptr(m.Offset.Bytes())
		if m.Name != "" {
			n, err := btf.Sizeof(m.Type)
			if err == nil {
				into[m.Name] = member{at, uintptr(n)}
			}
			continue
		}
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			collect(t.Members, at, into)
		case *btf.Union:
			collect(t.Members, at, into)
		}
	}
}
