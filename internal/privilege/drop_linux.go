package privilege

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drop gives up every capability on every thread, for good (capabilities(7),
// PR_SET_NO_NEW_PRIVS), and under sudo becomes the user who called it. Packet
// sockets that are open stay usable: AF_PACKET asks for CAP_NET_RAW only when a
// socket is made. A plain root keeps its user id, because there is nobody else to
// become: without capabilities it may still write what root owns.
//
// It belongs into a command, never into a library: a process has one set of
// privileges.
func Drop() error {
	if err := becomeInvoker(); err != nil {
		return fmt.Errorf("privilege: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("privilege: no new privileges: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("privilege: ambient capabilities: %w", err)
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		// Fails without CAP_SETPCAP, where there is little to give up.
		_ = onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	err := onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0)
	if err != nil {
		return fmt.Errorf("privilege: capset: %w", err)
	}
	return nil
}

// becomeInvoker turns sudo's root into the user who called it.
func becomeInvoker() error {
	uid, errU := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errG := strconv.Atoi(os.Getenv("SUDO_GID"))
	if os.Geteuid() != 0 || errU != nil || errG != nil || uid <= 0 {
		return nil
	}
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}

// onAllThreads makes one system call on every thread: capabilities belong to
// threads. Go can do that only without cgo, as this project is built; with it
// (under the race detector) only the calling thread changes.
func onAllThreads(trap, a, b, c uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(trap, a, b, c)
	if errno == syscall.ENOTSUP {
		_, _, errno = syscall.Syscall(trap, a, b, c)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Held returns the calling thread's effective capabilities, as a bit set.
func Held() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("privilege: capget: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}
