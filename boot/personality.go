package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Credentials that say who the node is. Those that begin with system. are the ones that systemd takes for the same purpose, in newer versions.
const (
	keyConfig           = "coppice.config"
	keyHostname         = "coppice.hostname"
	keyMachineID        = "coppice.machine_id"
	keyHostnameSystemd  = "system.hostname"
	keyMachineIDSystemd = "system.machine_id"
	keySSH              = "coppice.ssh_host_"
)

// personalityPath keeps which traits the system was given, so that none is given twice: what was changed since then stays.
const personalityPath = "var/lib/coppice/personality.json"

// trait is one thing that makes a node differ from others of the same image.
type trait struct {
	name  string // in personalityPath
	path  string // in the root
	data  string
	mode  fs.FileMode
	check func(string) error
}

var (
	machineIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	// hostnamePattern is what hostname(7) and sethostname(2) allow.
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
)

func checkMachineID(id string) error {
	if !machineIDPattern.MatchString(id) || id == strings.Repeat("0", 32) {
		return fmt.Errorf("machine ID %.80q is not 32 hexadecimal digits in lower case: see machine-id(5)", id)
	}
	return nil
}

func checkHostname(name string) error {
	if !hostnamePattern.MatchString(name) {
		return fmt.Errorf("host name %.80q: letters, digits, '-' and '.', at most 64", name)
	}
	return nil
}

func checkSSHKey(key string) error {
	if !strings.HasPrefix(key, "-----BEGIN ") || !strings.Contains(key, "PRIVATE KEY-----") {
		return errors.New("not a private key as ssh-keygen(1) writes it")
	}
	return nil
}

// traits returns what was given for the system to be.
func (g Given) traits() (all []trait) {
	id := strings.ReplaceAll(strings.TrimSpace(g.first(keyMachineID, keyMachineIDSystemd)), "-", "")
	if id != "" {
		all = append(all, trait{"machine-id", "etc/machine-id", id, 0o444, checkMachineID})
	}
	if name := strings.TrimSpace(g.first(keyHostname, keyHostnameSystemd)); name != "" {
		all = append(all, trait{"hostname", "etc/hostname", name, 0o644, checkHostname})
	}
	for _, kind := range []string{"rsa_key", "ecdsa_key", "ed25519_key"} {
		if key := g.values[keySSH+kind]; key != "" {
			all = append(all, trait{"ssh_host_" + kind, "etc/ssh/ssh_host_" + kind, strings.TrimRight(key, "\n"), 0o600, checkSSHKey})
		}
	}
	return all
}

func (g Given) first(names ...string) string {
	for _, name := range names {
		if v := g.values[name]; v != "" {
			return v
		}
	}
	return ""
}

// given is what personalityPath holds.
type given struct {
	Traits []string `json:"traits"`
}

// givePersonality writes the traits that the system has not been given yet, and returns their names. Links in the system that lead out of it are not followed.
func givePersonality(dir string, traits []trait) (names []string, err error) {
	if len(traits) == 0 {
		return nil, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // it was only a way to files
	var before given
	data, err := root.ReadFile(personalityPath)
	if err == nil {
		err = json.Unmarshal(data, &before)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", personalityPath, err)
	}
	var errs []error
	for _, t := range traits {
		if slices.Contains(before.Traits, t.name) {
			continue
		}
		if err := t.give(root); err != nil {
			errs = append(errs, fmt.Errorf("give the node its %s: %w", t.name, err))
			continue
		}
		names = append(names, t.name)
	}
	if len(names) > 0 {
		data, err := json.Marshal(given{append(before.Traits, names...)})
		errs = append(errs, err, replace(root, personalityPath, append(data, '\n'), 0o644))
	}
	return names, errors.Join(errs...)
}

func (t trait) give(root *os.Root) error {
	if err := t.check(t.data); err != nil {
		return err
	}
	if err := replace(root, t.path, []byte(t.data+"\n"), t.mode); err != nil {
		return err
	}
	if !strings.HasPrefix(t.name, "ssh_") {
		return nil
	}
	// The public key that the image may have beside it is not this one's.
	if err := root.Remove(t.path + ".pub"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// replace puts a file in the place of another in one step, durably.
func replace(root *os.Root, name string, data []byte, mode fs.FileMode) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	next := name + ".coppice-new"
	if err := root.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := root.Rename(next, name); err != nil {
		return err
	}
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
