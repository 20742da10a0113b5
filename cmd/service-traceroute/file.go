package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
)

// soon is within what time a pipe is open that has a reader.
const soon = 100 * time.Millisecond

// openPrivate is createPrivate for a file that may be a named pipe, which is open
// when somebody reads it; ctx ends the waiting for that. Errors are failures.
func openPrivate(ctx context.Context, name string, stderr io.Writer) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	open := func() {
		file, err := createPrivate(name)
		if !errors.As(err, new(*failure)) {
			err = failed(err, "")
		}
		done <- result{file, err}
	}
	ended := ctx.Done()
	if info, err := os.Stat(name); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
		go open()
	} else {
		open()
		ended = nil // nobody had to be waited for
	}
	waits := time.NewTimer(soon)
	defer waits.Stop()
	for {
		select {
		case r := <-done:
			return r.file, r.err
		case <-waits.C:
			fmt.Fprintf(stderr, "opening the pipe %s, which waits for a reader\n", output.Escape(name))
		case <-ended:
			return nil, failed(fmt.Errorf("open %s: nobody reads it: %w", name, context.Cause(ctx)), "")
		}
	}
}

// createPrivate opens a file for records, which tell of people's traffic: nobody
// but its owner may read it, also when it was there before. Under sudo a new file
// belongs to the user who called.
//
// In a directory that others may write, a name may lead somewhere else than its user
// thinks, and root may write everywhere. So a file that was there has to belong to
// the user, and is not looked for behind a symbolic link; the one exception is what is
// this process's standard output already (/dev/stdout). A pipe or a device is what its
// owner made it.
func createPrivate(name string) (*os.File, error) {
	file, err := createNew(name)
	if !errors.Is(err, fs.ErrExist) {
		return file, err
	}
	file, err = os.OpenFile(name, os.O_WRONLY|noFollow, 0)
	linked := errors.Is(err, syscall.ELOOP)
	if linked {
		file, err = os.OpenFile(name, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		return file, nil
	case linked:
		var given *os.File
		if given, err = standard(name, info); given != nil {
			_ = file.Close() // which wrote nothing
			return given, nil
		}
	default:
		err = claim(file, info)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// createNew opens a file that was not there, which is fs.ErrExist otherwise.
func createNew(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if uid, gid, under := privilege.Invoker(); under {
		err = file.Chown(uid, gid)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// claim empties a file that was there, if it is the user's.
func claim(file *os.File, info fs.FileInfo) error {
	if uid, ok := ownerOf(info); ok {
		invoker, _, under := privilege.Invoker()
		if uid != os.Geteuid() && !(under && uid == invoker) {
			return failed(fmt.Errorf("open %s: this file belongs to another user (%d)", file.Name(), uid),
				"records tell of people's traffic: give the name of a new file, or of one of your own")
		}
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := file.Chmod(0o600); err != nil {
			return err
		}
	}
	return file.Truncate(0)
}

// standard returns another descriptor of this process's own output, where name is a
// link to that: writing goes on where it is.
func standard(name string, info fs.FileInfo) (*os.File, error) {
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if own, err := f.Stat(); err == nil && os.SameFile(own, info) {
			return duplicate(f, name)
		}
	}
	return nil, failed(fmt.Errorf("open %s: this is a symbolic link to a file", name), "give the name of the file itself")
}

// styled reports whether text may be bold: on a terminal, unless the user asked
// for none (no-color.org).
func styled(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
