package boot

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Bounds of what firmware says: systemd takes credentials of up to 1 MiB (CREDENTIAL_SIZE_MAX in its src/shared/creds-util.h).
const (
	maxTable      = 16 << 20
	maxCredential = 1 << 20
)

const (
	textCredential   = "io.systemd.credential:"
	binaryCredential = "io.systemd.credential.binary:"
)

// smbiosCredentials takes the credentials out of the vendor strings of an SMBIOS table, as smbios-type-11(7) has them. The table is that of
// /sys/firmware/dmi/tables/DMI: structures, each of a type, a length, and a handle, with strings that end at two zeros after them (DMTF DSP0134, 6.1).
func smbiosCredentials(table []byte) (map[string]string, error) {
	const vendorStrings, endOfTable, header = 11, 127, 4
	found := map[string]string{}
	var errs []error
	for len(table) >= header {
		kind, length := table[0], int(table[1])
		if length < header || length > len(table) {
			return found, errors.Join(append(errs, errors.New("SMBIOS table: a structure is longer than the table"))...)
		}
		text, rest, ended := bytes.Cut(table[length:], []byte{0, 0})
		if !ended {
			text, rest = table[length:], nil
		}
		// A structure without strings has the two zeros alone.
		if kind == endOfTable {
			break
		}
		if kind == vendorStrings {
			for s := range bytes.SplitSeq(text, []byte{0}) {
				errs = append(errs, vendorString(found, string(s)))
			}
		}
		table = rest
	}
	return found, errors.Join(errs...)
}

// vendorString enters a string that is a credential of ours.
func vendorString(found map[string]string, s string) error {
	if text, ok := strings.CutPrefix(s, textCredential); ok {
		if name, value, ok := strings.Cut(text, "="); ok && known(name) {
			found[name] = value
		}
		return nil
	}
	text, ok := strings.CutPrefix(s, binaryCredential)
	name, value, valued := strings.Cut(text, "=")
	if !ok || !valued || !known(name) {
		return nil
	}
	data, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return fmt.Errorf("credential %s in SMBIOS: %w", name, err)
	}
	found[name] = string(data)
	return nil
}

// fwcfgCredentials reads those that QEMU was given with -fw_cfg name=opt/io.systemd.credentials/NAME. dir is where the driver shows them.
func fwcfgCredentials(dir string) (map[string]string, error) {
	found := map[string]string{}
	dir = filepath.Join(dir, "opt", "io.systemd.credentials")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("read credentials in fw_cfg: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !known(e.Name()) {
			continue
		}
		data, err := readBounded(filepath.Join(dir, e.Name(), "raw"), maxCredential)
		if err != nil {
			errs = append(errs, fmt.Errorf("read credential %s in fw_cfg: %w", e.Name(), err))
			continue
		}
		found[e.Name()] = string(data)
	}
	return found, errors.Join(errs...)
}

// readBounded reads a file of at most so many bytes.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return data, err
}
