package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"coppice/ca"
	"coppice/node"
)

type caCmd struct {
	Init  caInitCmd  `cmd:"" help:"Make an authority: a key and a certificate, in a directory."`
	Issue caIssueCmd `cmd:"" help:"Issue a certificate to a server or a client."`
}

type caInitCmd struct {
	output
	Dir      string        `arg:"" type:"path" help:"Directory for ca.crt and ca.key; it is made where there is none."`
	Name     string        `placeholder:"NAME" help:"Name of the authority (coppice CA, and a random number)."`
	Lifetime time.Duration `placeholder:"DURATION" help:"How long it holds (87600h, ten years)."`
}

// Run makes the authority.
func (c *caInitCmd) Run(env *environment) error {
	pair, err := ca.Init(c.Dir, ca.Options{Name: c.Name, Lifetime: c.Lifetime})
	if err != nil {
		return explainCA(err)
	}
	return c.print(env.out, pair, func(w io.Writer) {
		fmt.Fprintf(w, "%s: authority %q, until %s\n%s: its key, which is to stay secret\n", pair.Cert, pair.Name, showTime(pair.NotAfter), pair.Key)
	})
}

type caIssueCmd struct {
	output
	Dir      string        `arg:"" type:"path" help:"Directory of the authority."`
	Name     string        `arg:"" help:"Name of the node or server: its files are NAME.crt and NAME.key."`
	Host     []string      `placeholder:"HOST" help:"DNS name or IP address at which a server is reached; may be given several times. Without, the certificate is a client's."`
	Client   bool          `help:"Also for a client, with --host."`
	Lifetime time.Duration `placeholder:"DURATION" help:"How long it holds (2160h, 90 days), at most as long as the authority."`
	Out      string        `placeholder:"DIR" type:"path" help:"Directory for the files (that of the authority)."`
	Renew    bool          `help:"Replace the certificate and key of that name."`
}

// Run issues the certificate.
func (c *caIssueCmd) Run(env *environment) error {
	pair, err := ca.Issue(c.Dir, ca.Options{
		Name: c.Name, Hosts: c.Host, Client: c.Client, Lifetime: c.Lifetime, Dir: c.Out, Renew: c.Renew,
	})
	if err != nil {
		return explainCA(err)
	}
	return c.print(env.out, pair, func(w io.Writer) {
		of := []string{}
		if len(pair.Hosts) > 0 {
			of = append(of, "a server, "+strings.Join(pair.Hosts, ", "))
		}
		if pair.Client {
			of = append(of, "a client")
		}
		fmt.Fprintf(w, "%s: certificate of %s, until %s\n%s: its key\n", pair.Cert, strings.Join(of, " and of "), showTime(pair.NotAfter), pair.Key)
	})
}

func showTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// explainCA says what to do about an error with an authority.
func explainCA(err error) error {
	e := node.Explain(err)
	switch {
	case errors.Is(err, ca.ErrExists):
		e.Code, e.Hint = node.CodeNameTaken, "give another name or directory; --renew replaces what coppice ca issue made"
	case errors.Is(err, ca.ErrNoCA):
		e.Code, e.Hint = node.CodeNotFound, "coppice ca init makes one"
	case errors.Is(err, ca.ErrExpired):
		e.Code, e.Hint = node.CodeBadRequest, "coppice ca init makes a new one, in another directory; docs/cli.md says how to change over"
	case errors.Is(err, ca.ErrBadOption):
		e.Code, e.Hint = node.CodeBadRequest, ""
	case errors.Is(err, fs.ErrPermission) && strings.Contains(err.Error(), "by others"):
		e.Code, e.Hint = node.CodeForbidden, "chmod 600 it; if others may have read it, make a new authority"
	}
	return e
}
