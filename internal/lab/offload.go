//go:build linux

package lab

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	cmd, data uint32
}

// ifreqData is struct ifreq of linux/if.h as SIOCETHTOOL uses it: a name and a
// pointer, in a structure of 40 bytes (32 on 32-bit systems).
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// disableOffloads makes an interface send and receive frames as a wire would
// carry them. Two namespaces joined by veth otherwise hand each other segments
// of up to 64 KiB whose checksums were never computed; a process that re-sends
// frames it captured would send garbage.
func disableOffloads(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Checksums last, because the kernel turns dependent features off with them.
	for _, cmd := range []uint32{unix.ETHTOOL_SGRO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STSO, unix.ETHTOOL_STXCSUM} {
		if err := ethtool(fd, name, &ethtoolValue{cmd: cmd}); err != nil {
			return err
		}
	}
	return nil
}

func ethtool(fd int, name string, value *ethtoolValue) error {
	req := ifreqData{data: unsafe.Pointer(value)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(value)
	if errno != 0 {
		return fmt.Errorf("ethtool command %#x: %w", value.cmd, errno)
	}
	return nil
}

// Offloads lists the offloads that are on at one of the node's interfaces, by the
// names of ethtool(8).
func (n *Node) Offloads(name string) ([]string, error) {
	on := []string{}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, o := range []struct {
			cmd  uint32
			name string
		}{
			{unix.ETHTOOL_GTXCSUM, "tx"}, {unix.ETHTOOL_GRXCSUM, "rx"}, {unix.ETHTOOL_GTSO, "tso"},
			{unix.ETHTOOL_GGSO, "gso"}, {unix.ETHTOOL_GGRO, "gro"},
		} {
			value := &ethtoolValue{cmd: o.cmd}
			if err := ethtool(fd, name, value); err != nil {
				return err
			}
			if value.data != 0 {
				on = append(on, o.name)
			}
		}
		return nil
	})
	return on, err
}
