// Command dying says that it is a version of coppice that can take devices over, and ends where it is to serve them.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"coppice/node"
)

func main() {
	if !slices.Contains(os.Args, "version") {
		fmt.Fprintln(os.Stderr, "this program serves nothing")
		os.Exit(3)
	}
	v := node.ProgramVersion{Version: "dying", API: node.APIVersion, Records: node.RecordFormat}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		os.Exit(1)
	}
}
