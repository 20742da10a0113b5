// Package netns opens descriptors in other network namespaces and lists those of
// this machine. A descriptor belongs to the namespace in which it was made,
// whoever uses it later.
package netns

import (
	"errors"
	"strings"
)

// ErrNone is matched by errors about namespaces that do not exist.
var ErrNone = errors.New("no such network namespace")

// AccessError: the namespace exists and may not be opened or entered.
type AccessError struct {
	Where string
	Err   error
}

// Error implements error.
func (e *AccessError) Error() string {
	return "enter network namespace \"" + e.Where + "\": " + e.Err.Error()
}

// Unwrap implements the errors package's convention.
func (e *AccessError) Unwrap() error { return e.Err }

// ID tells namespaces apart: device and inode of their file (namespaces(7)).
type ID struct{ Dev, Inode uint64 }

// path is where a namespace's file lies: NAME is one of ip-netns(8).
func path(where string) string {
	if strings.Contains(where, "/") {
		return where
	}
	return "/run/netns/" + where
}
