package main

import "coppice/union"

type storeDumpCmd struct{ storePath }

// Run prints the store's structures.
func (c *storeDumpCmd) Run(env *environment) error {
	return explainStore(c.Path, union.Dump(env.out, c.Path))
}
