package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Where the kernel says what was given; relative, for tests.
const (
	procCommandLine = "proc/cmdline"
	sysTable        = "sys/firmware/dmi/tables/DMI"
	sysFwcfg        = "sys/firmware/qemu_fw_cfg/by_name"
	maxCommandLine  = 1 << 20
)

// lineKeys are the names that are taken from the kernel's command line and from credentials, secretKeys those that are taken from credentials alone:
// everybody can read the command line.
var (
	lineKeys   = []string{keyRoot, keyLeaf, keyName, keySize, keyTries, keyTrace, keyHostname, keyMachineID}
	secretKeys = []string{keyConfig, keyHostnameSystemd, keyMachineIDSystemd, keySSH + "rsa_key", keySSH + "ecdsa_key", keySSH + "ed25519_key"}
)

func known(name string) bool {
	return slices.Contains(lineKeys, name) || slices.Contains(secretKeys, name)
}

// Given is all that was said to the machine about its root and about itself.
type Given struct {
	Params
	// From tells where each name was given: "command line", "SMBIOS" or "fw_cfg".
	From map[string]string `json:"from"`

	values map[string]string
}

// Read finds out what the machine is to boot from. The kernel's command line goes before credentials, and those in SMBIOS before those in fw_cfg. root
// is the directory in which proc and sys are mounted: "/" but for tests. Its error names all that is wrong, joined; nothing was changed then.
func Read(root string) (Given, error) {
	g := Given{From: map[string]string{}, values: map[string]string{}}
	line, err := readBounded(filepath.Join(root, procCommandLine), maxCommandLine)
	if err != nil {
		return g, fmt.Errorf("read the kernel's command line: %w", err)
	}
	onLine, lineErr := commandLine(string(line))
	g.take(onLine, "command line")
	table, err := readBounded(filepath.Join(root, sysTable), maxTable)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return g, fmt.Errorf("read SMBIOS table: %w", err)
	}
	inTable, tableErr := smbiosCredentials(table)
	g.take(inTable, "SMBIOS")
	inFwcfg, fwcfgErr := fwcfgCredentials(filepath.Join(root, sysFwcfg))
	g.take(inFwcfg, "fw_cfg")
	var parseErr error
	g.Params, parseErr = parse(g.values)
	return g, errors.Join(lineErr, tableErr, fwcfgErr, parseErr)
}

// take adds what is not given yet.
func (g *Given) take(values map[string]string, from string) {
	for name, value := range values {
		if _, ok := g.values[name]; !ok {
			g.values[name], g.From[name] = trimmed(name, value), from
		}
	}
}

// trimmed takes the line break off that a file ends with. Keys and configurations are files, and keep it.
func trimmed(name, value string) string {
	if slices.Contains(lineKeys, name) {
		return strings.TrimSpace(value)
	}
	return value
}

// commandLine takes the names that are ours from the kernel's command line.
func commandLine(line string) (map[string]string, error) {
	found := map[string]string{}
	var errs []error
	for _, word := range splitCommandLine(line) {
		name, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		_, twice := found[name]
		switch {
		case slices.Contains(secretKeys, name):
			errs = append(errs, fmt.Errorf("%s is taken as a credential only: everybody can read the kernel's command line", name))
		case !slices.Contains(lineKeys, name):
			errs = append(errs, fmt.Errorf("%s on the kernel's command line is not known: there are %s", name, strings.Join(slices.Sorted(slices.Values(lineKeys)), ", ")))
		case twice:
			errs = append(errs, fmt.Errorf("%s is given twice on the kernel's command line", name))
		case value == "":
			errs = append(errs, fmt.Errorf("%s on the kernel's command line has no value", name))
		default:
			found[name] = value
		}
	}
	return found, errors.Join(errs...)
}

// Asked tells whether somebody wants this machine to boot from a device of ours, be it with parameters that make no sense.
func (g Given) Asked() bool { return g.values[keyRoot] != "" || g.values[keyLeaf] != "" }

// Sources lists where names were given, in order of the names, for messages.
func (g Given) Sources() (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(g.From)) {
		lines = append(lines, name+" from "+g.From[name])
	}
	return lines
}
