package vmtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// uRootModule is a root that nobody of this project has made: a shell, a few commands and an init, all of them one Go program. It is got from the proxy of Go modules.
const uRootModule = "github.com/u-root/u-root@v0.16.0"

// uRootCommands are what it has of its commands.
var uRootCommands = []string{"cat", "dmesg", "echo", "gosh", "init", "ls", "mount", "shutdown", "sync"}

// uRootTags choose a shell that reads lines, instead of one that asks the terminal what it can do.
const uRootTags = "goshsmall"

// uRootBytes is the size of the file system that it is put into.
const uRootBytes = 128 << 20

// URoot returns the path of an ext4 file system with u-root's files, as its own builder makes them.
func (b *Build) URoot(ctx context.Context) (string, error) {
	dir, err := b.asset(ctx, "u-root", fmt.Sprint("u-root 1 ", uRootModule, uRootCommands, uRootTags, uRootBytes), b.fillURoot)
	return filepath.Join(dir, "root.img"), err
}

func (b *Build) fillURoot(ctx context.Context, dir string) error {
	if err := b.need(ctx, "cpio", "mke2fs"); err != nil {
		return err
	}
	out, err := command(ctx, dir, "go", "mod", "download", "-json", uRootModule)
	var module struct{ Dir string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &module)
	}
	if err != nil {
		return fmt.Errorf("download %s: %w", uRootModule, err)
	}
	source, tree := filepath.Join(dir, "source"), filepath.Join(dir, "tree")
	argv := []string{"env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false", "go", "run", ".", "-tags", uRootTags, "-o", filepath.Join(dir, "root.cpio")}
	for _, name := range uRootCommands {
		argv = append(argv, "./cmds/core/"+name)
	}
	if _, err := command(ctx, "", "sh", "-ec", `cp -r "$1" "$2"; chmod -R u+w "$2"; mkdir "$3"`, "copy", module.Dir, source, tree); err != nil {
		return err
	}
	if _, err := command(ctx, source, argv[0], argv[1:]...); err != nil {
		return err
	}
	if _, err := command(ctx, tree, "sh", "-c", "cpio -idm --quiet <../root.cpio"); err != nil {
		return err
	}
	err = ext4FromTree(ctx, tree, filepath.Join(dir, "root.img"), uRootBytes, "")
	return errors.Join(err, os.RemoveAll(source), os.RemoveAll(tree), os.Remove(filepath.Join(dir, "root.cpio")))
}
