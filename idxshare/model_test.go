package idxshare

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// disk is a model of file systems: what an index and a delta on it are to say.
type disk struct {
	volumes []Volume
	files   map[uint64]*File             // by key
	names   map[uint64]map[string]uint64 // of each directory, by key: inodes
	extents map[uint64][]Extent          // by key
	next    [2]int64                     // block
	inode   uint64
	// What changed since the base was taken.
	dirtyFiles, dirtyDirectories map[uint64]bool
}

func newDisk() *disk {
	d := &disk{files: map[uint64]*File{}, names: map[uint64]map[string]uint64{}, extents: map[uint64][]Extent{}, inode: 10,
		dirtyFiles: map[uint64]bool{}, dirtyDirectories: map[uint64]bool{}}
	d.volumes = []Volume{{ID: 0, Start: 4096, Length: 1 << 30, Type: "ext4", BlockSize: 4096, Root: 2, Mapped: true},
		{ID: 7, Partition: 2, Start: 2 << 30, Length: 1 << 30, Type: "xfs", BlockSize: 1024, Root: 5}}
	for _, v := range d.volumes {
		d.files[inodeKey(v.ID, v.Root)] = &File{Volume: v.ID, Inode: v.Root, Mode: ModeDirectory | 0o755, Links: 2}
		d.names[inodeKey(v.ID, v.Root)] = map[string]uint64{}
	}
	return d
}

func (d *disk) volume(key uint64) *Volume {
	i := slices.IndexFunc(d.volumes, func(v Volume) bool { return v.ID == int(key>>56) })
	return &d.volumes[i]
}

// write makes an index of all, or a delta of what changed.
func (d *disk) write(t testing.TB, path string, delta bool) *Index {
	w := &world{header: Header{Source: "all", Size: 4 << 30}, volumes: d.volumes}
	if delta {
		w.header = Header{Source: "leaf", Size: 4 << 30, Delta: true, Base: "all", Generation: 7}
		for key := range d.dirtyFiles {
			w.replacedFiles = append(w.replacedFiles, Name{Volume: int(key >> 56), Inode: key & MaxInode})
		}
		for key := range d.dirtyDirectories {
			w.replacedDirectories = append(w.replacedDirectories, Name{Volume: int(key >> 56), Inode: key & MaxInode})
		}
	}
	for key, f := range d.files {
		if !delta || d.dirtyFiles[key] {
			w.files = append(w.files, *f)
			w.extents = append(w.extents, d.extents[key]...)
		}
	}
	for key, names := range d.names {
		if !delta || d.dirtyDirectories[key] {
			for name, inode := range names {
				w.names = append(w.names, Name{Volume: int(key >> 56), Parent: key & MaxInode, Name: []byte(name), Inode: inode})
			}
		}
	}
	w.write(t, path, 3)
	return openTest(t, path)
}

// mutate does one thing to the disk.
func (d *disk) mutate(t *rapid.T) {
	v := d.volumes[rapid.IntRange(0, 1).Draw(t, "volume")]
	directories := slices.Sorted(maps.Keys(d.names))
	directories = slices.DeleteFunc(directories, func(key uint64) bool { return int(key>>56) != v.ID })
	dir := rapid.SampledFrom(directories).Draw(t, "directory")
	name := rapid.OneOf(rapid.SampledFrom(hostileNames), rapid.StringMatching(`[abAB/]{1,4}`), rapid.StringMatching(`lib[a-c]{1,3}\.so`)).Draw(t, "name")
	name = strings.ReplaceAll(name, "/", "é")
	inodes := slices.Sorted(maps.Keys(d.files))
	inodes = slices.DeleteFunc(inodes, func(key uint64) bool { return int(key>>56) != v.ID || key&MaxInode == v.Root })
	switch what := rapid.SampledFrom([]string{"create", "create", "create", "mkdir", "unlink", "write", "link", "rename"}).Draw(t, "what"); {
	case what == "create" || what == "mkdir" || len(inodes) == 0:
		d.unlink(dir, name)
		d.inode++
		key := inodeKey(v.ID, d.inode)
		if len(inodes) > 0 && rapid.IntRange(0, 3).Draw(t, "reuse") == 0 { // of an inode that was free
			for n := uint64(11); n < d.inode; n++ {
				if d.files[inodeKey(v.ID, n)] == nil {
					key = inodeKey(v.ID, n)
				}
			}
		}
		d.files[key] = &File{Volume: v.ID, Inode: key & MaxInode, Mode: ModeRegular | 0o644, Links: 1, Size: rapid.Int64Range(0, 1<<40).Draw(t, "size")}
		if what == "mkdir" {
			d.files[key].Mode = ModeDirectory | 0o755
			d.names[key] = map[string]uint64{}
			d.dirtyDirectories[key] = true
		}
		d.names[dir][name] = key & MaxInode
		d.dirtyFiles[key], d.dirtyDirectories[dir] = true, true
		d.grow(t, key)
	case what == "unlink":
		d.unlink(dir, name)
	case what == "write":
		key := rapid.SampledFrom(inodes).Draw(t, "inode")
		d.files[key].Mtime++
		d.dirtyFiles[key] = true
		d.grow(t, key)
	case what == "link":
		key := rapid.SampledFrom(inodes).Draw(t, "inode")
		if !d.files[key].IsDirectory() && d.names[dir][name] != key&MaxInode {
			d.unlink(dir, name)
			if f := d.files[key]; f != nil {
				f.Links++
				d.names[dir][name] = key & MaxInode
				d.dirtyFiles[key], d.dirtyDirectories[dir] = true, true
			}
		}
	case what == "rename":
		names := slices.Sorted(maps.Keys(d.names[dir]))
		to := rapid.SampledFrom(directories).Draw(t, "to")
		if len(names) == 0 {
			return
		}
		old := rapid.SampledFrom(names).Draw(t, "old")
		inode := d.names[dir][old]
		if d.names[to][name] == inode || d.below(inodeKey(v.ID, inode), to) {
			return
		}
		if target, ok := d.names[to][name]; ok && d.below(inodeKey(v.ID, target), dir) {
			return
		}
		d.unlink(to, name)
		delete(d.names[dir], old)
		d.names[to][name] = inode
		d.dirtyDirectories[dir], d.dirtyDirectories[to] = true, true
	}
}

// below tells whether a directory is in another, or is it.
func (d *disk) below(above, directory uint64) bool {
	if above == directory {
		return true
	}
	for _, inode := range d.names[above] {
		if key := inodeKey(int(above>>56), inode); d.names[key] != nil && d.below(key, directory) {
			return true
		}
	}
	return false
}

// grow gives an inode one more extent, some of which lie where another's does.
func (d *disk) grow(t *rapid.T, key uint64) {
	v := d.volume(key)
	at := &d.next[0]
	if v.ID != 0 {
		at = &d.next[1]
	}
	e := Extent{Volume: v.ID, Inode: key & MaxInode, Kind: ExtentKind(rapid.IntRange(0, 3).Draw(t, "kind")), Logical: rapid.Int64Range(0, 1000).Draw(t, "logical"),
		Physical: *at, Length: rapid.Int64Range(1, 30).Draw(t, "length"), Unwritten: rapid.Bool().Draw(t, "unwritten")}
	if v.ID != 0 {
		e.Physical -= rapid.Int64Range(0, min(e.Physical, 40)).Draw(t, "shared")
	}
	*at = max(*at, e.Physical+e.Length+rapid.Int64Range(0, 2).Draw(t, "gap"))
	d.extents[key] = append(d.extents[key], e)
}

// unlink removes a name, if it is there, and what nothing leads to any more.
func (d *disk) unlink(dir uint64, name string) {
	inode, ok := d.names[dir][name]
	if !ok {
		return
	}
	delete(d.names[dir], name)
	d.dirtyDirectories[dir] = true
	d.free(inodeKey(int(dir>>56), inode))
}

func (d *disk) free(key uint64) {
	f := d.files[key]
	d.dirtyFiles[key] = true
	if f.Links--; f.Links > 0 && !f.IsDirectory() {
		return
	}
	names := d.names[key]
	delete(d.names, key)
	delete(d.files, key)
	delete(d.extents, key)
	if f.IsDirectory() {
		d.dirtyDirectories[key] = true
		for _, inode := range names {
			d.free(inodeKey(int(key>>56), inode))
		}
	}
}

// paths returns all paths with their keys.
func (d *disk) paths() map[string]uint64 {
	all := map[string]uint64{}
	var walk func(key uint64, prefix string)
	walk = func(key uint64, prefix string) {
		for name, inode := range d.names[key] {
			child := inodeKey(int(key>>56), inode)
			all[prefix+"/"+name] = child
			walk(child, prefix+"/"+name)
		}
	}
	for _, v := range d.volumes {
		walk(inodeKey(v.ID, v.Root), fmt.Sprint(v.ID))
	}
	return all
}

// clone copies everything but what is marked as changed.
func (d *disk) clone() *disk {
	c := *d
	c.files, c.names, c.extents = map[uint64]*File{}, map[uint64]map[string]uint64{}, map[uint64][]Extent{}
	c.dirtyFiles, c.dirtyDirectories = map[uint64]bool{}, map[uint64]bool{}
	for key, f := range d.files {
		copied := *f
		c.files[key] = &copied
	}
	for key, names := range d.names {
		c.names[key] = maps.Clone(names)
	}
	for key, e := range d.extents {
		c.extents[key] = slices.Clone(e)
	}
	return &c
}

// What a view of an index and a delta answers is what a plain model answers, after any mutations.
func TestIdxModel(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		before := newDisk()
		for range rapid.IntRange(0, 40).Draw(rt, "before") {
			before.mutate(rt)
		}
		now := before.clone()
		base := before.write(t, filepath.Join(dir, fmt.Sprintf("%d-base", n)), false)
		defer base.Close()
		v := base.View()
		if rapid.IntRange(0, 3).Draw(rt, "delta") > 0 {
			for range rapid.IntRange(0, 20).Draw(rt, "after") {
				now.mutate(rt)
			}
			delta := now.write(t, filepath.Join(dir, fmt.Sprintf("%d-delta", n)), true)
			defer delta.Close()
			var err error
			if v, err = NewView(context.Background(), base, delta); err != nil {
				rt.Fatal(err)
			}
			now.checkChanged(rt, v, before)
		}
		now.checkAll(rt, v)
		now.checkPaths(rt, v)
		now.checkFind(rt, v)
		now.checkOwners(rt, v)
	})
}

func (d *disk) checkAll(t *rapid.T, v *View) {
	ctx := context.Background()
	files := map[uint64]*File{}
	if err := v.Files(ctx, func(f *File) error {
		files[inodeKey(f.Volume, f.Inode)] = f
		return nil
	}); err != nil || !reflect.DeepEqual(files, d.files) {
		t.Fatalf("files: %v\n%v\n%v", err, files, d.files)
	}
	names := map[uint64]map[string]uint64{}
	for key := range d.names {
		names[key] = map[string]uint64{}
	}
	if err := v.Names(ctx, func(n Name) error {
		key := inodeKey(n.Volume, n.Parent)
		if names[key] == nil {
			return fmt.Errorf("a name in directory %d, which is not there", n.Parent)
		}
		names[key][string(n.Name)] = n.Inode
		return nil
	}); err != nil || !reflect.DeepEqual(names, d.names) {
		t.Fatalf("names: %v\n%v\n%v", err, names, d.names)
	}
	var got, want []Extent
	if err := v.Extents(ctx, func(e Extent) error {
		got = append(got, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, e := range d.extents {
		want = append(want, e...)
	}
	slices.SortFunc(got, compareExtents)
	slices.SortFunc(want, compareExtents)
	if !slices.Equal(got, slices.Compact(want)) {
		t.Fatalf("extents:\n%v\n%v", got, want)
	}
}

func (d *disk) checkPaths(t *rapid.T, v *View) {
	ctx := context.Background()
	byKey := map[uint64][]string{}
	for path, key := range d.paths() {
		_, path, _ := strings.Cut(path, "/")
		path = "/" + path
		f, err := v.Lookup(ctx, int(key>>56), path)
		if err != nil || !reflect.DeepEqual(f, d.files[key]) {
			t.Fatalf("look up %q: %v, %v", path, f, err)
		}
		byKey[key] = append(byKey[key], path)
	}
	for key, want := range byKey {
		got, err := v.Paths(ctx, int(key>>56), key&MaxInode)
		slices.Sort(want)
		if err != nil || len(got) != len(want) {
			t.Fatalf("paths of %x: %q, not %q, %v", key, got, want, err)
		}
		for i := range got {
			if string(got[i]) != want[i] {
				t.Fatalf("paths of %x: %q, not %q", key, got, want)
			}
		}
	}
	if _, err := v.Lookup(ctx, 0, "/a/no such name"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("look up what is not there: %v", err)
	}
}

// found returns "volume/path" of what a query finds, each of which comes once.
func found(t *rapid.T, v *View, q Query) []string {
	var got []string
	err := v.Find(context.Background(), q, func(m Match) error {
		got = append(got, fmt.Sprintf("%d%s", m.Volume, m.Path))
		return nil
	})
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	slices.Sort(got)
	if len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Fatalf("%+v: something twice: %q", q, got)
	}
	return got
}

func (d *disk) checkFind(t *rapid.T, v *View) {
	all := d.paths()
	for range 6 {
		q := Query{NamesOnly: true, IgnoreCase: rapid.Bool().Draw(t, "ignore case"), WholePath: rapid.Bool().Draw(t, "path"), Syntax: Syntax(rapid.IntRange(0, 2).Draw(t, "syntax"))}
		q.Pattern = rapid.OneOf(rapid.SampledFrom([]string{"lib", ".so", "a", "", "LIBA", "*", "lib*.so", "*b?", "(?i)LIB|é", "lib(a|b)+c?", "^[^a]*$", "caf.", "\xe9", "\xc3",
			"f\xc3", "[a-c]*", "\\*", "libab", "/lib", "é/", "日本語", "\\.so$", "[!l]*", "(liba|libb)\\.so", "straße", "STRASSE", "K", "S"}), rapid.SampledFrom(hostileNames)).Draw(t, "pattern")
		if q.Syntax == Regexp && (!validRegexp(q.Pattern) || strings.Contains(q.Pattern, "\xff")) {
			q.Syntax = Substring
		}
		if rapid.IntRange(0, 3).Draw(t, "typed") == 0 {
			q.Type = ModeDirectory
		}
		if rapid.IntRange(0, 4).Draw(t, "under") == 0 {
			q.Under = rapid.SampledFrom([]string{"/", "/a", "/lib", "/é"}).Draw(t, "directory")
		}
		m, err := newMatcher(q.Pattern, q.Syntax, q.IgnoreCase)
		if errors.Is(err, ErrBadQuery) {
			continue
		}
		want := []string{}
		isThere := false
		for path, key := range all {
			number, path, _ := strings.Cut(path, "/")
			path = "/" + path
			text := path
			if !q.WholePath {
				text = path[strings.LastIndexByte(path, '/')+1:]
			}
			prefix := strings.TrimSuffix(q.Under, "/") + "/"
			isThere = isThere || q.Under == "/" || path == q.Under && d.files[key].IsDirectory()
			if plainMatch(m, q, text) && (q.Under == "" || strings.HasPrefix(path, prefix)) && (q.Type == 0 || d.files[key].IsDirectory()) {
				want = append(want, number+path)
			}
		}
		if q.Under != "" && q.Under != "/" && !isThere {
			continue
		}
		slices.Sort(want)
		if got := found(t, v, q); !slices.Equal(got, want) {
			t.Fatalf("%+v: found %q, not %q", q, got, want)
		}
		if len(want) > 1 {
			q.Limit = len(want) / 2
			if got := found(t, v, q); len(got) != q.Limit {
				t.Fatalf("%+v: found %d", q, len(got))
			}
		}
	}
}

func validRegexp(pattern string) bool {
	_, err := regexp.Compile(pattern)
	return err == nil
}

// plainMatch tells what matches without what the index knows: the matcher for globs, and what the standard library has for others.
func plainMatch(m *matcher, q Query, text string) bool {
	switch {
	case q.Syntax == Regexp && q.IgnoreCase:
		return regexp.MustCompile("(?i)" + q.Pattern).MatchString(text)
	case q.Syntax == Regexp:
		return regexp.MustCompile(q.Pattern).MatchString(text)
	case q.Syntax == Substring && !q.IgnoreCase:
		return strings.Contains(text, q.Pattern)
	}
	return m.match([]byte(text))
}

func (d *disk) checkOwners(t *rapid.T, v *View) {
	from := rapid.Int64Range(0, 3<<30).Draw(t, "from")
	if rapid.Bool().Draw(t, "near") {
		from = d.volumes[rapid.IntRange(0, 1).Draw(t, "of")].Start + rapid.Int64Range(-5000, d.next[0]*4096).Draw(t, "at")
		from = max(0, from)
	}
	to := from + rapid.Int64Range(0, 1<<20).Draw(t, "bytes")
	var want []Owner
	for _, extents := range d.extents {
		for _, e := range extents {
			r := d.volume(inodeKey(e.Volume, 0))
			size := int64(r.BlockSize)
			begin := r.Start + e.Physical*size
			o := Owner{From: max(begin, from), To: min(begin+e.Length*size, to), Volume: e.Volume, Extent: e}
			o.Offset = e.Logical*size + o.From - begin
			if o.From < o.To {
				want = append(want, o)
			}
		}
	}
	var got []Owner
	at := from
	err := v.Owners(context.Background(), from, to, func(o Owner) error {
		if o.From > at {
			return fmt.Errorf("nothing is told of byte %d", at)
		}
		at = max(at, o.To)
		if o.What == Owned {
			got = append(got, o)
			return nil
		}
		for _, w := range want {
			if w.From < o.To && o.From < w.To {
				return fmt.Errorf("bytes %d to %d are told to be %s", o.From, o.To, o.What)
			}
		}
		what := Outside
		for _, r := range d.volumes {
			if r.Start < o.To && o.From < r.Start+r.Length {
				if what = Unknown; r.Mapped {
					what = Free
				}
			}
		}
		if what != o.What {
			return fmt.Errorf("bytes %d to %d are told to be %s, not %s", o.From, o.To, o.What, what)
		}
		return nil
	})
	if err != nil || at != to {
		t.Fatalf("owners of %d to %d: %v, until %d", from, to, err, at)
	}
	order := func(a, b Owner) int { return cmp.Or(cmp.Compare(a.From, b.From), compareExtents(a.Extent, b.Extent)) }
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if !slices.Equal(got, slices.Compact(want)) {
		t.Fatalf("owners of %d to %d:\n%v\n%v", from, to, got, want)
	}
}

// checkChanged compares what is told to be changed with the two states.
func (d *disk) checkChanged(t *rapid.T, v *View, before *disk) {
	want := []string{}
	for path, key := range d.paths() {
		_, name := filepath.Split(path)
		parent := d.parentOf(path)
		old, ok := before.names[parent][name]
		if d.dirtyFiles[key] || !ok || old != key&MaxInode {
			want = append(want, path)
		}
	}
	slices.Sort(want)
	if got := found(t, v, Query{Changed: true}); !slices.Equal(got, want) {
		t.Fatalf("changed: %q, not %q", got, want)
	}
}

func (d *disk) parentOf(path string) uint64 {
	dir := path[:strings.LastIndexByte(path, '/')]
	if key, ok := d.paths()[dir]; ok {
		return key
	}
	for _, v := range d.volumes {
		if fmt.Sprint(v.ID) == dir {
			return inodeKey(v.ID, v.Root)
		}
	}
	return 0
}

// Globs match what a shell's do.
func TestIdxGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		ignoreCase    bool
		want          bool
	}{
		{"*", "", false, true}, {"*.so", "a.so", false, true}, {"*.so", "a.so.1", false, false}, {"?", "é", false, true}, {"?", "\xe9", false, true},
		{"[a-c]x", "bx", false, true}, {"[!a-c]x", "bx", false, false}, {"[^a-c]x", "dx", false, true}, {"[]]", "]", false, true}, {"[a-]", "-", false, true},
		{"[", "[", false, true}, {"[ab", "[ab", false, true}, {"\\*", "*", false, true}, {"\\*", "a", false, false}, {"[\\]]", "]", false, true},
		{"a*b*c", "aXbXbXc", false, true}, {"a*b*c", "aXbXb", false, false}, {"ABC", "abc", true, true}, {"É*", "éa", true, true}, {"*\xff*", "a\xffb", false, true},
		{"*\xff*", "a\xfeb", false, false}, {"**a", "bba", false, true}, {"[A-C]", "b", true, true}, {"", "", false, true}, {"", "a", false, false},
	} {
		m, err := newMatcher(c.pattern, Glob, c.ignoreCase)
		if err != nil {
			t.Fatal(err)
		}
		if m.match([]byte(c.name)) != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.name, !c.want)
		}
	}
	if _, err := newMatcher("a\\", Glob, false); !errors.Is(err, ErrBadQuery) {
		t.Error(err)
	}
}

// A name that matches has the text that the matcher says is needed: by the query that FTS5 gets, evaluated here.
func TestIdxNeedsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`(\(\?i\))?([a-c]{1,4}|\(([a-c]{3}\|)?[b-d]{3,4}\)[+*?]?|\.|[a-c]{3}\{2\}|é){1,4}`).Draw(t, "pattern")
		name := rapid.StringMatching(`([a-dA-D]{1,6}|é|É){0,3}`).Draw(t, "name")
		syntax := Syntax(rapid.IntRange(0, 2).Draw(t, "syntax"))
		ignoreCase := rapid.Bool().Draw(t, "ignore case")
		m, err := newMatcher(pattern, syntax, ignoreCase)
		if err != nil {
			if !errors.Is(err, ErrBadQuery) {
				t.Fatal(err)
			}
			return
		}
		if syntax == Regexp {
			flags := map[bool]string{true: "(?i)"}[ignoreCase]
			if want := regexp.MustCompile(flags + pattern).MatchString(name); m.match([]byte(name)) != want {
				t.Fatalf("%q matches %q: %v, and it is %v", flags+pattern, name, !want, want)
			}
		}
		if m.match([]byte(name)) && !meets(m.required, string(fold(nil, []byte(name)))) {
			t.Fatalf("%q matches %q, which lacks %+v", pattern, name, m.required)
		}
		if piece := m.required.longest(); m.match([]byte(name)) && !strings.Contains(string(fold(nil, []byte(name))), piece) {
			t.Fatalf("%q matches %q, which lacks %q", pattern, name, piece)
		}
	})
}

func meets(n *needs, folded string) bool {
	if n == nil {
		return true
	}
	if n.text != "" {
		return strings.Contains(folded, n.text)
	}
	met := 0
	for _, p := range n.parts {
		if meets(p, folded) {
			met++
		}
	}
	return met == len(n.parts) || n.any && met > 0
}

// A digest comes with the file that has it, and what has none says why.
func TestIdxDigest(t *testing.T) {
	w := &world{header: Header{Source: "s", Size: 1 << 20}, volumes: []Volume{{ID: 1, Length: 1 << 20, BlockSize: 4096}}}
	digest := bytes.Repeat([]byte{7}, digestSize)
	w.files = []File{{Volume: 1, Inode: 2, Mode: ModeDirectory}, {Volume: 1, Inode: 11, Mode: ModeRegular, Digest: digest}, {Volume: 1, Inode: 12, Mode: ModeRegular}}
	w.names = []Name{{1, 2, []byte("has"), 11}, {1, 2, []byte("none"), 12}}
	v := w.index(t).View()
	if got, err := v.Digest(context.Background(), 1, "/has"); err != nil || !bytes.Equal(got, digest) {
		t.Errorf("%x, %v", got, err)
	}
	for _, path := range []string{"/none", "/", "/neither", "has/x"} {
		if _, err := v.Digest(context.Background(), 1, path); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
