//go:build !unix

package main

import (
	"errors"
	"io/fs"
	"os"
)

// noFollow does not exist here.
const noFollow = 0

// ownerOf cannot tell.
func ownerOf(fs.FileInfo) (uid int, ok bool) { return 0, false }

func duplicate(*os.File, string) (*os.File, error) { return nil, errors.ErrUnsupported }
