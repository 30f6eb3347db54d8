package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coppice/node"
)

// Release has the daemon of runDir, of whatever version, stop and delete each of its devices: what they hold is written and their leaf
// stores are closed and marked clean. It fails where one is still in use after half a minute, and leaves that one as it is. say is told what is done.
func Release(ctx context.Context, runDir string, say func(string)) error {
	client, err := node.ClientOf(ctx, runDir)
	if err != nil {
		return fmt.Errorf("release devices of %s: %w", runDir, err)
	}
	devices, err := client.List(ctx)
	if err != nil {
		return fmt.Errorf("release devices of %s: %w", runDir, err)
	}
	began := time.Now()
	var errs []error
	for _, d := range devices {
		_, err := client.Delete(ctx, d.Name)
		for node.CodeOf(err) == node.CodeInUse && time.Since(began) < inUseTime {
			time.Sleep(100 * time.Millisecond)
			_, err = client.Delete(ctx, d.Name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		say(fmt.Sprintf("device %s (%s) is stopped, its leaf is closed", d.Name, d.Path))
	}
	return errors.Join(errs...)
}
