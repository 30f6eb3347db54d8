package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"aead.dev/minisign"
	"golang.org/x/term"

	"coppice/image"
	"coppice/node"
)

type imageSignCmd struct {
	output
	sourceFlags
	Ref     imageRef      `arg:"" help:"Image to sign: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
	Key     string        `required:"" placeholder:"FILE" type:"existingfile" help:"Secret key, as minisign -G makes it."`
	Name    string        `placeholder:"NAME" help:"Name that it is signed under, or the end of it behind a slash (that in the reference)."`
	Serial  uint64        `placeholder:"N" help:"Number that grows from version to version (seconds since 1970)."`
	Expires time.Duration `placeholder:"DURATION" help:"How long the signature holds, such as 2160h (for ever)."`
}

const passwordEnv = "COPPICE_KEY_PASSWORD"

// Run signs the image.
func (c *imageSignCmd) Run(env *environment) error {
	s, err := c.statement(time.Now())
	if err != nil {
		return err
	}
	key, err := readSecretKey(env, c.Key)
	if err != nil {
		return err
	}
	err = c.withImage(env.ctx, c.Ref.Ref, func(im *image.Image) error {
		o, err := c.options()
		if err != nil {
			return err
		}
		dst, err := c.Ref.Target(o)
		if err != nil {
			return err
		}
		s, err = image.Sign(env.ctx, im, dst, key, s)
		return errors.Join(err, dst.Close())
	})
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	return c.print(env.out, s, func(w io.Writer) {
		fmt.Fprintf(w, "%s: signed as %s, serial %d, with key %016X\ncontent root %s\n", c.Ref, s.Name, s.Serial, key.ID(), s.ContentRoot)
	})
}

func (c *imageSignCmd) statement(now time.Time) (image.Statement, error) {
	s := image.Statement{Name: c.Name, Serial: c.Serial}
	if s.Name == "" {
		s.Name = c.Ref.Image
	}
	if s.Serial == 0 {
		s.Serial = uint64(now.Unix())
	}
	if c.Expires < 0 {
		return s, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("sign %s: --expires %s is negative", c.Ref, c.Expires), Hint: "give a time such as 2160h"}
	}
	if c.Expires > 0 {
		s.Expires = now.Add(c.Expires).UTC().Truncate(time.Second)
	}
	return s, nil
}

// readSecretKey reads a key, with a password from the environment or the terminal where it needs one.
func readSecretKey(env *environment, path string) (key minisign.PrivateKey, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return key, fmt.Errorf("read key: %w", err)
	}
	bad := func(err error) (minisign.PrivateKey, error) {
		return key, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("read key %s: %v", path, err),
			Hint: "give a secret key as minisign -G makes it; its password may be in " + passwordEnv}
	}
	if !minisign.IsEncrypted(data) {
		if err := key.UnmarshalText(data); err != nil {
			return bad(err)
		}
		return key, nil
	}
	password, ok := os.LookupEnv(passwordEnv)
	if !ok {
		if !isTerminal(os.Stdin) {
			return bad(errors.New("it has a password, and there is no terminal to ask for it"))
		}
		fmt.Fprintf(env.err, "Password of %s: ", path)
		typed, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(env.err)
		if err != nil {
			return bad(err)
		}
		password = string(typed)
	}
	if key, err = minisign.DecryptKey(password, data); err != nil {
		return bad(err)
	}
	return key, nil
}

// readKeys reads the public keys that are trusted.
func readKeys(paths []string) ([]minisign.PublicKey, error) {
	var keys []minisign.PublicKey
	for _, path := range paths {
		key, err := minisign.PublicKeyFromFile(path)
		if err != nil {
			return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("read key %s: %v", path, err), Hint: "give a public key as minisign -G makes it"}
		}
		keys = append(keys, key)
	}
	return keys, nil
}
