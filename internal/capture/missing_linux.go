package capture

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Missing says what the kernel lacks when its error means just that, and returns
// every other error as it is.
func Missing(err error, what, needs string) error {
	for _, errno := range []error{
		unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ENOSYS,
	} {
		if errors.Is(err, errno) {
			return &lacking{what, needs, err}
		}
	}
	return err
}

// lacking is an error of a kernel that was built without something.
type lacking struct {
	what, needs string
	err         error
}

// Error implements error.
func (l *lacking) Error() string {
	return l.what + " are not supported by this kernel (needs " + l.needs + "): " + l.err.Error()
}

// Is implements the errors package's convention.
func (l *lacking) Is(target error) bool { return target == errors.ErrUnsupported }

// Unwrap implements the errors package's convention.
func (l *lacking) Unwrap() error { return l.err }
