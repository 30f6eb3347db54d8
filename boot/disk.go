package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"

	"coppice/node"
	"coppice/union"
)

// poll is how often it is looked whether a disk has appeared.
const poll = 100 * time.Millisecond

// linkOf returns where a disk is looked for: its path, or the link that udev makes for a tag. In the names of links, udev writes what is not safe as
// \xHH (util_make_safe and encode_devnode_name in systemd's src/shared/device-nodes.c).
func linkOf(device string) string {
	tag, value, ok := strings.Cut(device, "=")
	dir := tags[tag]
	if !ok || dir == "" {
		return device
	}
	if tag == "UUID" || tag == "PARTUUID" {
		value = strings.ToLower(value)
	}
	var b strings.Builder
	for _, c := range []byte(value) {
		safe := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80 || strings.IndexByte("#+-.:=@_", c) >= 0
		if safe {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	return filepath.Join("/dev/disk", dir, b.String())
}

// waitDisk returns the path of a disk once it is there.
func (s *starter) waitDisk(ctx context.Context, what, device string, wait time.Duration) (string, error) {
	path := linkOf(device)
	began := time.Now()
	for told := false; ; {
		st, err := os.Stat(path)
		if store := s.storeOf(device); err != nil && store != "" {
			path = store
			continue
		}
		if err == nil {
			if st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
				return "", problem(node.CodeBadRequest, "give the path of a disk or partition", "%s %s is no block device", what, device)
			}
			return path, nil
		}
		waited := time.Since(began)
		switch {
		case waited >= wait:
			return "", problem(node.CodeBadLeaf,
				"attach it, or correct the parameter; if it needs longer, give "+keyLeaf+"=…,wait=5m; a driver that is missing in the initramfs is named in /etc/initramfs-tools/modules or with dracut's --add-drivers",
				"%s %s has not appeared in %s; %s", what, device, wait, s.disksHere())
		case !told && waited >= time.Second:
			s.console.say("waiting for %s %s, up to %s", what, device, wait)
			told = true
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(poll):
		}
	}
}

// storeOf returns the path of the disk with the leaf store that UUID= names, or "": udev knows no stores.
func (s *starter) storeOf(device string) string {
	text, ok := strings.CutPrefix(device, "UUID=")
	id, err := uuid.Parse(text)
	if !ok || err != nil {
		return ""
	}
	entries, _ := os.ReadDir(filepath.Join(s.root, sysBlock)) // without it, there is none
	for _, e := range entries {
		path := filepath.Join(s.root, "dev", e.Name())
		if found, err := union.Identify(path); err == nil && found == id {
			return path
		}
	}
	return ""
}

const (
	sysBlock      = "sys/class/block"
	maxDisksShown = 16
)

// disksHere says which disks and partitions the kernel knows.
func (s *starter) disksHere() string {
	dir := filepath.Join(s.root, sysBlock)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "what disks there are cannot be found out: " + err.Error()
	}
	links := diskLinks(filepath.Join(s.root, "dev/disk/by-id"))
	var found []string
	for _, e := range entries {
		data, err := readBounded(filepath.Join(dir, e.Name(), "size"), 64)
		sectors := int64(0)
		if _, scanErr := fmt.Sscan(string(data), &sectors); err != nil || scanErr != nil || sectors == 0 {
			continue
		}
		text := fmt.Sprintf("/dev/%s of %s", e.Name(), humanize.IBytes(uint64(sectors)*512))
		if link := links[e.Name()]; link != "" {
			text += " (" + link + ")"
		}
		found = append(found, text)
	}
	switch {
	case len(found) == 0:
		return "there are no disks"
	case len(found) > maxDisksShown:
		found = append(found[:maxDisksShown], fmt.Sprintf("and %d more", len(found)-maxDisksShown))
	}
	return "there are " + strings.Join(found, ", ")
}

// diskLinks returns a link for each name of a disk that has one.
func diskLinks(dir string) map[string]string {
	links := map[string]string{}
	names, _ := filepath.Glob(filepath.Join(dir, "*")) // it fails on bad patterns alone
	slices.Sort(names)
	for _, link := range names {
		if target, err := os.Readlink(link); err == nil {
			links[filepath.Base(target)] = "/dev/disk/by-id/" + filepath.Base(link)
		}
	}
	return links
}
