package vmtests

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Accel is how QEMU executes the guest.
type Accel string

// The two accelerators. TCG is emulation and works everywhere.
const (
	TCG Accel = "tcg"
	KVM Accel = "kvm"
)

func (a Accel) args(counted bool) []string {
	switch {
	case a == KVM:
		return []string{"-accel", "kvm", "-cpu", "host"}
	case counted:
		return []string{"-accel", "tcg,thread=single", "-cpu", countedCPUFlags, "-icount", "shift=0,align=off,sleep=on"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", cpuFlags}
}

// probeLimit bounds the trial boot; with working hardware virtualization it takes about a second.
const probeLimit = 20 * time.Second

// accel tells whether this machine can run the kernel under KVM. A /dev/kvm that opens proves nothing: only a trial boot
// does. The verdict is kept for this kernel, QEMU and host.
func (b *Build) accel(ctx context.Context, kernel Kernel) (Accel, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	f.Close()
	recipe, err := accelRecipe(kernel)
	if err != nil {
		return "", err
	}
	dir, err := b.asset(ctx, "accel", recipe, func(ctx context.Context, dir string) error {
		verdict := TCG
		if err := b.trial(ctx, kernel); err == nil {
			verdict = KVM
		} else if ctx.Err() != nil {
			return ctx.Err()
		} else {
			b.log("KVM does not boot this kernel here (build/vm/accel/trial says how it failed): using emulation")
			if err := os.WriteFile(filepath.Join(dir, "trial"), []byte(err.Error()), 0o644); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir, "verdict"), []byte(verdict), 0o644)
	})
	if err != nil {
		return "", err
	}
	verdict, err := os.ReadFile(filepath.Join(dir, "verdict"))
	return Accel(verdict), err
}

func accelRecipe(kernel Kernel) (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read host kernel: %w", err)
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", err
	}
	info, err := os.Stat(qemu)
	if err != nil {
		return "", err
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := sha256.Sum256(firstField(cpu, "model name"))
	text, err := json.Marshal([]any{"accel 2", kernel.Release, u, info.Size(), info.ModTime(), model})
	return string(text), err
}

// trial boots a minimal guest under KVM and asks it for one command.
func (b *Build) trial(ctx context.Context, kernel Kernel) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	cfg := Config{Name: "kvm-trial", CPUs: 1, MemMiB: 512, Files: map[string]string{}}
	vm, err := b.start(ctx, cfg, kernel, KVM)
	if err != nil {
		return err
	}
	return vm.Kill()
}
