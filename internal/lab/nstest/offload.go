//go:build linux

package nstest

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OffloadsOff turns an interface's transmit offloads off, as "ethtool -K" does.
// It works on the calling thread's namespace.
func OffloadsOff(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Checksums last: the others depend on them.
	for _, cmd := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_SGRO, unix.ETHTOOL_STXCSUM} {
		if err := ethtoolSet(fd, name, cmd, 0); err != nil {
			return fmt.Errorf("%s: ethtool %#x: %w", name, cmd, err)
		}
	}
	return nil
}

func ethtoolSet(fd int, name string, cmd, value uint32) error {
	arg := struct{ cmd, data uint32 }{cmd, value} // struct ethtool_value
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of struct ifreq's union
	}{data: unsafe.Pointer(&arg)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
