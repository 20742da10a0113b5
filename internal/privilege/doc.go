// Package privilege gives up what the process no longer needs, once its sockets
// are open, and says what it needs where that is missing.
package privilege

import (
	"errors"
	"io/fs"
	"os"
)

// Capability is a number of capabilities(7).
type Capability uint8

// What the project asks for.
const (
	DACOverride   Capability = 1  // CAP_DAC_OVERRIDE: directories that not even their owner may write
	DACReadSearch Capability = 2  // CAP_DAC_READ_SEARCH: other users' directories in /proc
	Kill          Capability = 5  // CAP_KILL: signals to other users' processes
	SysPtrace     Capability = 19 // CAP_SYS_PTRACE: whose sockets are whose
	SysAdmin      Capability = 21 // CAP_SYS_ADMIN: other network namespaces
	NetAdmin      Capability = 12 // CAP_NET_ADMIN
	NetRaw        Capability = 13 // CAP_NET_RAW: packet sockets
)

// Hint says what helps against an error of missing privileges, of which these are needed as
// setcap(8) writes them; empty when the error is of another kind. A file that may not be
// opened is of another kind.
func Hint(err error, needed string) string {
	var file *fs.PathError
	if !errors.Is(err, os.ErrPermission) || errors.As(err, &file) {
		return ""
	}
	return "run as root, or once: chgrp GROUP FILE && chmod 0750 FILE && setcap " + needed + "+ep FILE " +
		"(not for everybody: whoever may run it can sniff and forge packets)"
}
