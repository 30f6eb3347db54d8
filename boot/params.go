package boot

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice/ebpf"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// Names of what is read, on the kernel's command line and as credentials alike.
const (
	keyRoot  = "coppice.root"
	keyLeaf  = "coppice.leaf"
	keyName  = "coppice.name"
	keySize  = "coppice.size"
	keyTries = "coppice.tries"
	keyTrace = "coppice.trace"
	prefix   = "coppice."
)

// Policy says what to do where the leaf's layer was made for another root.
type Policy string

// The policies.
const (
	// PolicyRefuse ends the boot with an error.
	PolicyRefuse Policy = "refuse"
	// PolicyFresh takes a new layer beside the old one, which stays as it is.
	PolicyFresh Policy = "fresh"
	// PolicyKeep boots the root that the layer was made for, where it is to be found beside the one that is asked for.
	PolicyKeep Policy = "keep"
)

var policies = []Policy{PolicyRefuse, PolicyFresh, PolicyKeep}

const (
	defaultName = "root"
	defaultWait = 30 * time.Second
	// defaultTries is how many boots may fail before another layer is taken, and maxTries how many that can be.
	defaultTries = 3
	maxTries     = 1000
	maxWait      = 24 * time.Hour
)

// Params say which device is to be the machine's root. The zero value means none.
type Params struct {
	// Roots are references of replicas of one image, or of one raw disk.
	Roots []string `json:"roots"`
	Leaf  Leaf     `json:"leaf"`
	// Name is that of the device.
	Name string `json:"name"`
	// SizeBytes is the size of the device; 0 means that of the root, or of the layer that is there already.
	SizeBytes int64 `json:"size_bytes,omitempty"`
	// Tries is how many boots in a row may fail before what is below the layer is booted from; 0: any number.
	Tries int `json:"tries"`
	// Trace has the requests of the device recorded in the kernel from the first one on, in a ring of TraceBytes; 0 means one of the usual size.
	Trace      bool `json:"trace,omitempty"`
	TraceBytes int  `json:"trace_bytes,omitempty"`
}

// Leaf says where what is written goes.
type Leaf struct {
	// Device is the path of a disk or partition, or one of UUID=, LABEL=, PARTUUID= and PARTLABEL= with a value. It is empty with RAM.
	Device string `json:"device,omitempty"`
	// RAM takes memory of the machine, RAMBytes of it, instead: what is written is gone when the machine is switched off. 0 means half of all memory.
	RAM      bool  `json:"ram,omitempty"`
	RAMBytes int64 `json:"ram_bytes,omitempty"`
	// Layer is the layer in the store.
	Layer string `json:"layer"`
	// Format allows to make a store on a disk on which nothing is.
	Format bool `json:"format,omitempty"`
	// CacheBytes is what such a new store reserves for the cache of blocks.
	CacheBytes int64 `json:"cache_bytes,omitempty"`
	// Policy is never empty.
	Policy Policy `json:"policy"`
	// Wait is how long the disk may take to appear.
	Wait time.Duration `json:"wait_nanos"`
}

// String is for messages.
func (l Leaf) String() string {
	if l.RAM {
		return "ram"
	}
	return l.Device
}

// Wanted tells whether the machine is to boot from a device of ours.
func (p Params) Wanted() bool { return len(p.Roots) > 0 }

// Remote tells whether a root is behind the network.
func (p Params) Remote() bool {
	return slices.ContainsFunc(p.Roots, func(text string) bool {
		ref, err := image.ParseRef(text)
		return err == nil && ref.Path() == ""
	})
}

// parse makes sense of what was given under each name, and returns all that is wrong with it, joined. Names that belong to the personality are
// not looked at.
func parse(given map[string]string) (Params, error) {
	p := Params{Name: defaultName}
	if given[keyRoot] == "" {
		if given[keyLeaf] != "" {
			return Params{}, fmt.Errorf("%s is given without %s: give both, or none", keyLeaf, keyRoot)
		}
		return Params{}, nil
	}
	var errs []error
	note := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s=%.200s: %w", key, given[key], err))
		}
	}
	var err error
	p.Roots, err = parseRoots(given[keyRoot])
	note(keyRoot, err)
	if name := given[keyName]; name != "" {
		p.Name = name
		if !node.ValidName(name) {
			note(keyName, errors.New(node.NameHint))
		}
	}
	if size := given[keySize]; size != "" {
		p.SizeBytes, err = node.ParseBytes(size)
		if err == nil && p.SizeBytes%4096 != 0 {
			err = errors.New("not a multiple of 4096 bytes")
		}
		note(keySize, err)
	}
	p.Tries = defaultTries
	if tries := given[keyTries]; tries != "" {
		p.Tries, err = strconv.Atoi(tries)
		if err != nil || p.Tries < 0 || p.Tries > maxTries {
			note(keyTries, fmt.Errorf("not a number between 0 and %d", maxTries))
		}
	}
	if trace := given[keyTrace]; trace != "" {
		p.Trace = true
		p.TraceBytes, err = parseTrace(trace)
		note(keyTrace, err)
	}
	p.Leaf, err = parseLeaf(given[keyLeaf], p.Name)
	note(keyLeaf, err)
	return p, errors.Join(errs...)
}

// parseTrace takes "on", or the size of the ring.
func parseTrace(text string) (ring int, err error) {
	if text == "on" {
		return 0, nil
	}
	n, err := node.ParseBytes(text)
	if err == nil {
		err = ebpf.TraceConfig{RingBytes: int(min(n, math.MaxInt32))}.Validate()
	}
	if err != nil {
		return 0, fmt.Errorf("write on, or the size of the ring, such as 8M: %w", err)
	}
	return int(n), nil
}

func parseRoots(text string) ([]string, error) {
	roots := strings.Split(text, ",")
	if len(roots) > node.MaxReplicas {
		return nil, fmt.Errorf("%d roots are more than %d", len(roots), node.MaxReplicas)
	}
	for i, root := range roots {
		ref, err := image.ParseRef(root)
		switch {
		case err != nil:
			return nil, err
		case ref.Path() != "" && !strings.HasPrefix(ref.Path(), "/"):
			return nil, fmt.Errorf("%q is no path from / on, and no image: write http://HOST/DIR:NAME:TAG, HOST/REPOSITORY:TAG or /dev/DISK", root)
		case ref.Kind == image.KindFile && len(roots) > 1:
			return nil, fmt.Errorf("%s is a raw disk, which can have no replicas", root)
		case slices.Contains(roots[:i], root):
			return nil, fmt.Errorf("%s is named twice", root)
		}
	}
	return roots, nil
}

const leafForm = "write DEVICE[:LAYER] or ram[:SIZE], and after it any of ,format ,policy=refuse|fresh|keep ,wait=TIME ,layer=NAME ,cache=SIZE"

// parseLeaf takes DEVICE[:LAYER][,OPTION]… apart.
func parseLeaf(text, name string) (Leaf, error) {
	l := Leaf{Policy: PolicyRefuse, Wait: defaultWait}
	where, options, more := strings.Cut(text, ",")
	if where == "" {
		return l, fmt.Errorf("no leaf is given: %s", leafForm)
	}
	if err := l.parseWhere(where); err != nil {
		return l, err
	}
	var seen []string
	for option := range strings.SplitSeq(options, ",") {
		if !more {
			break
		}
		key, _, _ := strings.Cut(option, "=")
		if slices.Contains(seen, key) {
			return l, fmt.Errorf("%s is given twice", key)
		}
		seen = append(seen, key)
		if err := l.parseOption(option); err != nil {
			return l, err
		}
	}
	if l.RAM && (l.Format || l.Policy != PolicyRefuse || slices.Contains(seen, "wait")) {
		return l, errors.New("format, policy and wait mean nothing for a leaf in memory: leave them away")
	}
	l.Layer = cmp.Or(l.Layer, name)
	return l, union.ValidLayerName(l.Layer)
}

// tags are what a disk may be named by beside its path, and the directories in which udev has links for them.
var tags = map[string]string{
	"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel",
}

// byPath has links whose names have colons of their own.
const byPath = "/dev/disk/by-path/"

func (l *Leaf) parseWhere(where string) (err error) {
	device, rest, more := strings.Cut(where, ":")
	if device == "ram" {
		l.RAM = true
		if more {
			l.RAMBytes, err = node.ParseBytes(rest)
		}
		return err
	}
	if strings.HasPrefix(where, byPath) {
		device, more = where, false
	}
	l.Device = device
	if more {
		if err := union.ValidLayerName(rest); err != nil {
			return err
		}
		l.Layer = rest
	}
	if tag, value, ok := strings.Cut(device, "="); ok && tags[tag] != "" {
		if value == "" || strings.Contains(value, "/") {
			return fmt.Errorf("%s has no value that a disk can have", tag)
		}
		return nil
	}
	if !devicePath.MatchString(device) {
		return fmt.Errorf("%q is neither the path of a disk below /dev nor UUID=, LABEL=, PARTUUID= or PARTLABEL= with a value: %s", device, leafForm)
	}
	return nil
}

// devicePath matches what may be a disk. Whether it is one shows when it is there.
var devicePath = regexp.MustCompile(`^/dev(/[^/\s]+)+$`)

func (l *Leaf) parseOption(option string) (err error) {
	key, value, valued := strings.Cut(option, "=")
	switch {
	case option == "format":
		l.Format = true
	case key == "policy" && slices.Contains(policies, Policy(value)):
		l.Policy = Policy(value)
	case key == "policy":
		return fmt.Errorf("policy %q is none of refuse, fresh and keep", value)
	case key == "wait" && valued:
		l.Wait, err = time.ParseDuration(value)
		if err != nil || l.Wait < 0 || l.Wait > maxWait {
			return fmt.Errorf("wait=%s is not a time such as 30s or 5m, up to %s", value, maxWait)
		}
	case key == "layer" && l.Layer != "":
		return errors.New("a layer is given twice")
	case key == "layer" && valued:
		l.Layer = value
		return union.ValidLayerName(value)
	case key == "cache" && valued:
		l.CacheBytes, err = node.ParseBytes(value)
		return err
	default:
		return fmt.Errorf("option %q is not known: %s", option, leafForm)
	}
	return nil
}
