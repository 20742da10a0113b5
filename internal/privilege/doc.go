// Package privilege gives up what the process no longer needs, once its sockets
// are open, and says what it needs where that is missing.
package privilege

import (
	"errors"
	"os"
)

// Hint says what helps against an error of missing privileges; empty when the
// error is of another kind.
func Hint(err error) string {
	if !errors.Is(err, os.ErrPermission) {
		return ""
	}
	return "run as root, or once: chgrp GROUP FILE && chmod 0750 FILE && setcap cap_net_raw+ep FILE " +
		"(not for everybody: whoever may run it can sniff and forge packets)"
}
