package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"coppice/image"
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// isKept reports whether an attribute is one that ext4 stores. Others, like those that a network file system shows, are about where a file lies.
func isKept(attr string) bool {
	for _, prefix := range []string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(attr, prefix) {
			return true
		}
	}
	return attr == accessACL || attr == defaultACL
}

// readXattrs reads the attributes of a file of this machine that are kept. A symbolic link's are its own.
func readXattrs(path string) ([]Xattr, error) {
	names, err := sized(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if errors.Is(err, unix.ENOTSUP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes of %s: %w", path, err)
	}
	var all []Xattr
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if !isKept(attr) {
			continue
		}
		value, err := sized(func(p []byte) (int, error) { return unix.Lgetxattr(path, attr, p) })
		if err != nil {
			return nil, fmt.Errorf("read attribute %q of %s: %w", attr, path, err)
		}
		if err := checkXattr(attr, value); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, Xattr{attr, value})
	}
	return all, nil
}

// sized calls a system call that fills a buffer and says how large one must be.
func sized(call func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := call(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		p := make([]byte, n)
		if n, err = call(p); !errors.Is(err, unix.ERANGE) {
			return p[:max(n, 0)], err
		}
	}
}

func checkXattr(attr string, value []byte) error {
	if strings.ContainsAny(attr, "\n\r\x00") || len(attr) > 255 {
		return fmt.Errorf("the name of attribute %.80q cannot be written: %w", attr, image.ErrBadOption)
	}
	if attr == accessACL || attr == defaultACL {
		return checkACL(value)
	}
	return nil
}

// An access control list, by the kernel's include/uapi/linux/posix_acl_xattr.h and fs/ext4/acl.h: the system calls have a version, 2, and
// entries of tag, permissions and identifier; on an ext4 file system the version is 1, and only entries of a named user or group have an identifier.
const aclUser, aclGroup = 0x02, 0x08

func checkACL(value []byte) error {
	if len(value)%8 != 4 || binary.LittleEndian.Uint32(value) != 2 {
		return fmt.Errorf("an access control list of %d bytes is not understood: %w", len(value), image.ErrBadOption)
	}
	return nil
}

// unpackACL returns a list that ext4 has stored as the system calls have it.
func unpackACL(value []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(value) < 4 || le.Uint32(value) != 1 {
		return nil, corrupt("an access control list has another version")
	}
	out := le.AppendUint32(nil, 2)
	for e := value[4:]; len(e) > 0; {
		if len(e) < 4 {
			return nil, corrupt("an access control list ends early")
		}
		id := bytes.Repeat([]byte{0xff}, 4)
		tag, head := le.Uint16(e), e[:4]
		e = e[4:]
		if tag == aclUser || tag == aclGroup {
			if len(e) < 4 {
				return nil, corrupt("an access control list ends early")
			}
			id, e = e[:4], e[4:]
		}
		out = append(append(out, head...), id...)
	}
	return out, nil
}
