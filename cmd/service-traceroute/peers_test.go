//go:build peers

package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestPeersShells lets real shells complete.
func TestPeersShells(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/peers", Cmds: commands})
}
