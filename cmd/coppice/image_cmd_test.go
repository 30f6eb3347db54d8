package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"coppice/image"
)

func TestImageErrorsSayWhatToDo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	env := &environment{ctx: ctx, out: io.Discard, err: io.Discard}
	registry := image.Ref{Kind: image.KindRegistry}
	say := func(err error) string {
		var b bytes.Buffer
		if code := report(&b, explainImage(env, registry, err)); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		return b.String()
	}
	for err, want := range map[error]string{
		image.ErrRefused:   "docker login",
		image.ErrNotFound:  "coppice image list",
		image.ErrBusy:      "wait until",
		image.ErrVersion:   "later coppice",
		image.ErrCorrupt:   "coppice image verify",
		image.ErrNoRemoval: "let the registry delete",
		image.ErrUnsigned:  "coppice image sign",
	} {
		if got := say(fmt.Errorf("copy: %w", err)); !strings.Contains(got, "to do: ") || !strings.Contains(got, want) {
			t.Errorf("%v: %s", err, got)
		}
	}
	if err := explainImage(env, registry, nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	cancel()
	if got, want := say(fmt.Errorf("build image a: %w", context.Canceled)), "coppice: build image a: interrupted\n  to do: start it again: what is done is not done twice\n"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	if got := say(errors.Join(image.ErrCorrupt)); strings.Contains(got, "interrupted") {
		t.Errorf("%q", got)
	}
}
