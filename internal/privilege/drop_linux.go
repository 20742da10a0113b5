package privilege

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drop gives up every capability but those to keep, on every thread and for good
// (capabilities(7), PR_SET_NO_NEW_PRIVS), and under sudo becomes the user who
// called it. Packet sockets that are open stay usable: AF_PACKET asks for
// CAP_NET_RAW only when a socket is made. Capabilities that the process does not
// have cannot be kept and are no error.
//
// A plain root keeps its user id, because there is nobody else to become: any
// other user would be somebody, whose files and processes are not ours. Without
// capabilities it may still write what root owns, but nobody else's files.
//
// It belongs into a command, never into a library: a process has one set of
// privileges.
func Drop(keep ...Capability) error {
	held, err := capabilities()
	if err != nil {
		return err
	}
	var set uint64
	for _, c := range keep {
		set |= 1 << c
	}
	set &= uint64(held[1].Permitted)<<32 | uint64(held[0].Permitted)
	// The bounding set goes first: it takes CAP_SETPCAP, which the user that we
	// become has no more. Without it there is little to give up; beyond the last
	// capability that the kernel knows it says EINVAL.
	for c := range Capability(64) {
		if set&(1<<c) == 0 {
			_ = onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0)
		}
	}
	if err := becomeInvoker(set != 0); err != nil {
		return fmt.Errorf("privilege: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("privilege: no new privileges: %w", err)
	}
	// Linux before 4.3 has none.
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("privilege: ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	// Nothing is inheritable: what we start needs none of it.
	data := [2]unix.CapUserData{
		{Effective: uint32(set), Permitted: uint32(set)},
		{Effective: uint32(set >> 32), Permitted: uint32(set >> 32)},
	}
	err = onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if err != nil {
		return fmt.Errorf("privilege: capset: %w", err)
	}
	return nil
}

// becomeInvoker turns sudo's root into the user who called it. In a user
// namespace that user may not exist, and root is no more than it was.
func becomeInvoker(keep bool) error {
	uid, errU := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errG := strconv.Atoi(os.Getenv("SUDO_GID"))
	if os.Geteuid() != 0 || errU != nil || errG != nil || uid <= 0 || gid < 0 || !initialUserNamespace() {
		return nil
	}
	if keep {
		// Or the change of user would take all capabilities.
		if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); err != nil {
			return fmt.Errorf("keep capabilities: %w", err)
		}
	}
	// The user last: only root may change the groups.
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

// initialUserNamespace tells by the map of user ids (user_namespaces(7)): only
// there it covers all of them.
func initialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
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
	data, err := capabilities()
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), err
}

func capabilities() (data [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return data, fmt.Errorf("privilege: capget: %w", err)
	}
	return data, nil
}
