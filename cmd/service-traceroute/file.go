package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
)

// createPrivate opens a file for records, which tell of people's traffic: nobody
// but its owner may read it, also when it was there before. Under sudo a new file
// belongs to the user who called.
func createPrivate(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		uid, errU := strconv.Atoi(os.Getenv("SUDO_UID"))
		gid, errG := strconv.Atoi(os.Getenv("SUDO_GID"))
		if errU == nil && errG == nil && os.Geteuid() == 0 {
			err = file.Chown(uid, gid)
		}
		return file, err
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	file, err = os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return nil, err
	}
	// A pipe or a device is what its owner made it.
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		if err := file.Chmod(0o600); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	return file, nil
}

// styled reports whether text may be bold: on a terminal, unless the user asked
// for none (no-color.org).
func styled(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
