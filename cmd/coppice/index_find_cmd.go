package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"coppice/idxshare"
	"coppice/node"
)

// indexVolume is a file system of the index to look in.
type indexVolume struct {
	Partition *int `placeholder:"N" help:"Look in the file system of this partition alone (all)."`
}

// of returns the file systems to look in. There is at least one.
func (f indexVolume) of(x *askedIndex, view *idxshare.View) (volumes []idxshare.Volume, err error) {
	for _, v := range view.Volumes() {
		if f.Partition == nil || v.Partition == *f.Partition {
			volumes = append(volumes, v)
		}
	}
	switch {
	case len(volumes) > 0:
		return volumes, nil
	case f.Partition == nil:
		return nil, &node.Error{Code: node.CodeNotFound, Message: fmt.Sprintf("the index of %s has no file system", x.info.On), Hint: "the disk had none that is known when it was indexed"}
	}
	return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("the index of %s has no file system in partition %d", x.info.On, *f.Partition), Hint: "coppice index info lists them"}
}

// indexPaths says how paths of an index are printed.
type indexPaths struct {
	Null bool `short:"0" name:"null" help:"End each path with a zero byte and print it as it is, for xargs -0."`

	names    map[int]string // what stands in front of paths, by volume
	terminal bool
}

// begin is called before the first path is printed.
func (p *indexPaths) begin(w io.Writer, volumes []idxshare.Volume) {
	p.names, p.terminal = make(map[int]string), isTerminal(w)
	if len(volumes) > 1 {
		for _, v := range volumes {
			p.names[v.ID] = fmt.Sprintf("%d:", v.Partition)
		}
	}
}

// show returns a path and its end. On a terminal one that would not come out as it is, is quoted so that a shell takes it.
func (p *indexPaths) show(volume int, path []byte) string {
	text := p.names[volume] + string(path)
	switch {
	case p.Null:
		return text + "\x00"
	case p.terminal:
		return quoteForShell(text) + "\n"
	}
	return text + "\n"
}

// quoteForShell returns a text as it is where all of it can be printed and none of it means anything to a shell, and otherwise in a form that shells read back: in single quotes, or as $'…' where
// there is something in it that cannot be printed.
func quoteForShell(s string) string {
	plain, printable := s != "", utf8.ValidString(s)
	for _, r := range s {
		printable = printable && unicode.IsPrint(r)
		plain = plain && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+:,@%=^", r))
	}
	switch {
	case plain && printable:
		return s
	case printable && !strings.Contains(s, "'"):
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\'' || r == '\\':
			b.WriteByte('\\')
			b.WriteString(s[:n])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			for _, c := range []byte(s[:n]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	b.WriteByte('\'')
	return b.String()
}

// jsonPath is a path in JSON. One that is no UTF-8 has U+FFFD in the place of what is not, and all of its bytes in the second field.
type jsonPath struct {
	Path  string `json:"path"`
	Bytes string `json:"path_base64,omitempty"`
}

func toJSONPath(path []byte) jsonPath {
	if utf8.Valid(path) {
		return jsonPath{Path: string(path)}
	}
	return jsonPath{Path: strings.ToValidUTF8(string(path), "\uFFFD"), Bytes: base64.StdEncoding.EncodeToString(path)}
}

type indexFindCmd struct {
	output
	indexView
	indexVolume
	indexPaths
	Pattern    string `arg:"" help:"Text that is in the name, or with a slash in it, in the path."`
	Glob       bool   `xor:"syntax" help:"PATTERN is the whole name, or path, with * ? and [a-z]."`
	Regex      bool   `xor:"syntax" help:"PATTERN is a regular expression (RE2) that matches in the name, or path."`
	IgnoreCase bool   `short:"i" help:"Upper and lower case are the same."`
	Type       string `enum:",f,d,l,b,c,p,s" default:"" placeholder:"f|d|l|b|c|p|s" help:"Only regular files, directories, symbolic links, block or character devices, pipes, or sockets."`
	Under      string `placeholder:"DIR" help:"Only what lies below this directory."`
	Changed    bool   `help:"Only what is another than in the root: of a device."`
	Limit      int    `placeholder:"N" help:"End after so many (all)."`
	Long       bool   `short:"l" help:"Also show mode, owner, size and time of change."`
}

// fileTypes are the types that find takes, as they are in a mode.
var fileTypes = map[string]uint32{
	"f": idxshare.ModeRegular, "d": idxshare.ModeDirectory, "l": idxshare.ModeSymlink, "b": idxshare.ModeBlock, "c": idxshare.ModeCharacter, "p": idxshare.ModeFIFO, "s": idxshare.ModeSocket,
}

// foundFile is a file that was found, in JSON.
type foundFile struct {
	jsonPath
	Partition int       `json:"partition"`
	Inode     uint64    `json:"inode"`
	Type      string    `json:"type"` // as in --type
	Mode      string    `json:"mode"` // permissions, in octal
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	SizeBytes int64     `json:"size_bytes"`
	Links     uint32    `json:"links"`
	Changed   time.Time `json:"mtime"`
	Target    *jsonPath `json:"target,omitempty"` // of a symbolic link
	Digest    string    `json:"sha256,omitempty"`
}

// Run prints what is found as it is found: there may be millions.
func (c *indexFindCmd) Run(env *environment) error {
	if c.Limit < 0 {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("find: --limit %d", c.Limit), Hint: "give how many names to print at most"}
	}
	return c.with(env, func(x *askedIndex, view *idxshare.View) error {
		volumes, err := c.of(x, view)
		if err != nil {
			return err
		}
		if c.Changed && (x.info.From != "device" || c.RootOnly) {
			return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("find --changed in the index of %s: nothing changed there", x.info.On), Hint: "give a device: --on NAME, without --root-only"}
		}
		out := bufio.NewWriter(env.out)
		c.begin(env.out, volumes)
		list := jsonList{w: out, name: "files"}
		err = view.Find(env.ctx, c.query(volumes), func(m idxshare.Match) error {
			if c.Output == "json" {
				return list.add(toFound(m, volumes))
			}
			line := ""
			if c.Long && m.File != nil {
				line = showFile(m.File)
			}
			_, err := out.WriteString(line + c.show(m.Volume, m.Path))
			return err
		})
		if c.Output == "json" && err == nil {
			err = list.end()
		}
		return errors.Join(err, out.Flush())
	})
}

func (c *indexFindCmd) query(volumes []idxshare.Volume) idxshare.Query {
	q := idxshare.Query{
		Pattern: c.Pattern, IgnoreCase: c.IgnoreCase, WholePath: strings.Contains(c.Pattern, "/"), Type: fileTypes[c.Type], Under: c.Under, Changed: c.Changed, Limit: c.Limit,
		NamesOnly: c.Output != "json" && !c.Long,
	}
	switch {
	case c.Glob:
		q.Syntax = idxshare.Glob
	case c.Regex:
		q.Syntax = idxshare.Regexp
	}
	for _, v := range volumes {
		q.Volumes = append(q.Volumes, v.ID)
	}
	return q
}

func toFound(m idxshare.Match, volumes []idxshare.Volume) foundFile {
	f := foundFile{jsonPath: toJSONPath(m.Path), Inode: m.Inode, Partition: partitionOf(m.Volume, volumes)}
	if m.File == nil {
		return f
	}
	f.Type, f.Mode = typeOf(m.File.Mode), fmt.Sprintf("%04o", m.File.Mode&^idxshare.ModeType)
	f.UID, f.GID, f.SizeBytes, f.Links, f.Changed = m.File.UID, m.File.GID, m.File.Size, m.File.Links, time.Unix(0, m.File.Mtime).UTC()
	if len(m.File.Target) > 0 {
		target := toJSONPath(m.File.Target)
		f.Target = &target
	}
	f.Digest = hex.EncodeToString(m.File.Digest)
	return f
}

func partitionOf(volume int, volumes []idxshare.Volume) int {
	for _, v := range volumes {
		if v.ID == volume {
			return v.Partition
		}
	}
	return 0
}

// typeOf returns the letter of a type, or "" for one that there is none of.
func typeOf(mode uint32) string {
	for letter, t := range fileTypes {
		if mode&idxshare.ModeType == t {
			return letter
		}
	}
	return ""
}

// showFile returns what stands before a path in a long list.
func showFile(f *idxshare.File) string {
	letter := typeOf(f.Mode)
	switch letter {
	case "f":
		letter = "-"
	case "":
		letter = "?"
	}
	return fmt.Sprintf("%s%04o %5d %5d %12d %s ", letter, f.Mode&^idxshare.ModeType, f.UID, f.GID, f.Size, time.Unix(0, f.Mtime).UTC().Format("2006-01-02 15:04:05"))
}

// jsonList writes {"NAME": [...], "count": N} piece by piece.
type jsonList struct {
	w    io.Writer
	name string
	n    int
}

func (l *jsonList) add(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	before := ",\n    "
	if l.n == 0 {
		before = fmt.Sprintf("{\n  %q: [\n    ", l.name)
	}
	l.n++
	_, err = fmt.Fprintf(l.w, "%s%s", before, data)
	return err
}

func (l *jsonList) end() error {
	after := "\n  ]"
	if l.n == 0 {
		after = fmt.Sprintf("{\n  %q: []", l.name)
	}
	_, err := fmt.Fprintf(l.w, "%s,\n  \"count\": %d\n}\n", after, l.n)
	return err
}

type indexDigestCmd struct {
	output
	indexView
	indexVolume
	Path string `arg:"" help:"Path of the file, from the root of its file system."`

	computed map[int][]byte // by volume: of what the index has none, and the device has the content
}

// fileDigest is the digest of a file, in JSON.
type fileDigest struct {
	jsonPath
	Partition int    `json:"partition"`
	SizeBytes int64  `json:"size_bytes"`
	Digest    string `json:"sha256"`
	Computed  bool   `json:"computed"` // now, of what the device holds: the index has none of this content
}

// Run shows the digest as sha256sum does: of the file of that path in each file system that has one. Of a device, a digest that the index does not have is computed.
func (c *indexDigestCmd) Run(env *environment) error {
	c.computed = map[int][]byte{}
	c.within = func(view *idxshare.View, content node.LayerContent) error {
		for _, v := range view.Volumes() {
			if c.Partition != nil && v.Partition != *c.Partition {
				continue
			}
			f, err := view.Lookup(env.ctx, v.ID, c.Path)
			if err == nil && f.Digest == nil && f.Mode&idxshare.ModeType == idxshare.ModeRegular && v.Mapped {
				c.computed[v.ID], err = idxshare.DigestOf(env.ctx, content, v, f.Inode)
			}
			if err != nil && !errors.Is(err, idxshare.ErrNotFound) {
				return err
			}
		}
		return nil
	}
	return c.with(env, func(x *askedIndex, view *idxshare.View) error {
		volumes, err := c.of(x, view)
		if err != nil {
			return err
		}
		found, err := c.find(env, view, volumes)
		if err != nil {
			return err
		}
		p := indexPaths{}
		p.begin(env.out, volumes)
		return c.print(env.out, struct {
			Files []fileDigest `json:"files"`
		}{found}, func(w io.Writer) {
			for _, f := range found {
				for _, v := range volumes {
					if v.Partition == f.Partition {
						fmt.Fprintln(w, sumLine(f.Digest, p.names[v.ID]+c.Path))
					}
				}
			}
		})
	})
}

// sumLine is a line as sha256sum prints and reads it: one whose path has a backslash or a newline begins with a backslash, and has them escaped.
func sumLine(digest, path string) string {
	escaped := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(path)
	if escaped != path {
		digest = `\` + digest
	}
	return digest + "  " + escaped
}

func (c *indexDigestCmd) find(env *environment, view *idxshare.View, volumes []idxshare.Volume) ([]fileDigest, error) {
	var found []fileDigest
	var missing error
	for _, v := range volumes {
		digest, err := view.Digest(env.ctx, v.ID, c.Path)
		computed := errors.Is(err, idxshare.ErrNotFound) && c.computed[v.ID] != nil
		if computed {
			digest, err = c.computed[v.ID], nil
		}
		if errors.Is(err, idxshare.ErrNotFound) {
			missing = errors.Join(missing, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := view.Lookup(env.ctx, v.ID, c.Path)
		if err != nil {
			return nil, err
		}
		found = append(found, fileDigest{toJSONPath([]byte(c.Path)), v.Partition, f.Size, hex.EncodeToString(digest), computed})
	}
	if len(found) == 0 {
		return nil, &node.Error{Code: node.CodeNotFound, Message: missing.Error(), Hint: "coppice index find finds paths; an index has digests where it was built with --digests"}
	}
	return found, nil
}
