package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// moduleTable maps a module's name to its file and those it needs, as depmod wrote them.
var moduleTable = sync.OnceValues(func() (map[string][]string, error) {
	dir, err := moduleDir()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir + "/modules.dep")
	if err != nil {
		return nil, fmt.Errorf("open modules.dep: %w", err)
	}
	defer f.Close()
	table := make(map[string][]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		file, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		files := append([]string{file}, strings.Fields(needs)...)
		for i := range files {
			files[i] = dir + "/" + files[i]
		}
		table[moduleName(file)] = files
	}
	return table, nil
})

func moduleDir() (string, error) {
	release, err := kernelRelease()
	return "/lib/modules/" + release, err
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// moduleName turns a file name such as crc32c-intel.ko.xz into the kernel's name for the module, crc32c_intel.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadModule loads a module after those it depends on. Options may follow the name: "null_blk nr_devices=2".
func loadModule(spec string) error {
	name, options, _ := strings.Cut(spec, " ")
	table, err := moduleTable()
	if err != nil {
		return err
	}
	files, ok := table[strings.ReplaceAll(name, "-", "_")]
	if !ok {
		return fmt.Errorf("load module %s: not in modules.dep", name)
	}
	for i := len(files) - 1; i >= 0; i-- {
		param := ""
		if i == 0 {
			param = options
		}
		if err := insertModule(files[i], param); err != nil {
			return fmt.Errorf("load module %s: insert %s: %w", name, files[i], err)
		}
	}
	return nil
}

func insertModule(file, options string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), options, flags)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
