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
	"kernel.org/pub/linux/libs/security/libcap/psx"
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
	set := among(keep, held)
	// The bounding set goes first: it takes CAP_SETPCAP, which the user that we
	// become has no more. Without it there is little to give up; beyond the last
	// capability that the kernel knows it says EINVAL.
	for c := range Capability(64) {
		if set&(1<<c) == 0 {
			_ = onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0)
		}
	}
	if err := noAmbient(); err != nil {
		return err
	}
	_, err = drop(set, set, false)
	return err
}

// Lower is Drop for a process that has to tidy up in the end what only root may:
// the capabilities of later stay permitted, without effect, and under sudo the
// saved user id stays root's. raise makes it root again, with those capabilities.
//
// The bounding set stays, which counts for nothing without new privileges: each
// call stops all threads for a moment, and somebody waits for answers meanwhile.
func Lower(later []Capability, keep ...Capability) (raise func() error, err error) {
	held, err := capabilities()
	if err != nil {
		return nil, err
	}
	set, more := among(keep, held), among(later, held)
	became, err := drop(set, set|more, true)
	return func() error {
		if err != nil {
			return err
		}
		if became {
			if err := syscall.Setresuid(-1, 0, -1); err != nil {
				return fmt.Errorf("privilege: setresuid: %w", err)
			}
		}
		return capset(set|more, set|more)
	}, err
}

// among are those of the capabilities that are held.
func among(list []Capability, held [2]unix.CapUserData) (set uint64) {
	for _, c := range list {
		set |= 1 << c
	}
	return set & (uint64(held[1].Permitted)<<32 | uint64(held[0].Permitted))
}

// NothingInherited empties the sets of capabilities that a program which is not
// root's would get from this process when it is started.
func NothingInherited() error {
	if err := noAmbient(); err != nil {
		return err
	}
	held, err := capabilities()
	if err != nil {
		return err
	}
	return capset(uint64(held[1].Effective)<<32|uint64(held[0].Effective), uint64(held[1].Permitted)<<32|uint64(held[0].Permitted))
}

// Shed gives up capabilities as Lower does, and nothing else, before a program is
// started that runs as this process's own user: root's get theirs from the bounding
// set, nobody else's get any.
func Shed(later []Capability, keep ...Capability) (raise func() error, err error) {
	if err := noAmbient(); err != nil {
		return nil, err
	}
	held, err := capabilities()
	if err != nil {
		return nil, err
	}
	set, more := among(keep, held), among(later, held)
	return func() error { return capset(set|more, set|more) }, capset(set, set|more)
}

// drop does the work; became tells whether the user is another one now.
func drop(effective, permitted uint64, saved bool) (became bool, err error) {
	if became, err = becomeInvoker(permitted != 0, saved); err != nil {
		return became, fmt.Errorf("privilege: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return became, fmt.Errorf("privilege: no new privileges: %w", err)
	}
	// A capability that is not inheritable is not ambient either.
	if data, err := capabilities(); err == nil && !became && sets(data) == [3]uint64{effective, permitted, 0} {
		return became, nil // by Shed, on all threads
	}
	return became, capset(effective, permitted)
}

// noAmbient empties the ambient set, which Linux before 4.3 does not have.
func noAmbient() error {
	err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("privilege: ambient capabilities: %w", err)
	}
	return nil
}

// capset sets the sets of every thread. Nothing is inheritable: what we start
// needs none of it.
func capset(effective, permitted uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32)},
	}
	err := onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if err != nil {
		return fmt.Errorf("privilege: capset: %w", err)
	}
	return nil
}

// Invoker is the user who called this process through sudo; false when there is
// none. In a user namespace that user may not exist, and root is no more than it
// was.
func Invoker() (uid, gid int, ok bool) {
	uid, errU := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errG := strconv.Atoi(os.Getenv("SUDO_GID"))
	ok = os.Geteuid() == 0 && errU == nil && errG == nil && uid > 0 && gid >= 0 && initialUserNamespace()
	return uid, gid, ok
}

// becomeInvoker turns sudo's root into the user who called it.
func becomeInvoker(keep, saved bool) (became bool, err error) {
	uid, gid, ok := Invoker()
	if !ok {
		return false, nil
	}
	if keep {
		// Or the change of user would take all capabilities.
		if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); err != nil {
			return false, fmt.Errorf("keep capabilities: %w", err)
		}
	}
	// The user last: only root may change the groups.
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return false, fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return false, fmt.Errorf("setresgid: %w", err)
	}
	back := uid
	if saved {
		back = 0
	}
	if err := syscall.Setresuid(uid, uid, back); err != nil {
		return false, fmt.Errorf("setresuid: %w", err)
	}
	return true, nil
}

// initialUserNamespace tells by the map of user ids (user_namespaces(7)): only
// there it covers all of them.
func initialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}

// onAllThreads makes one system call on every thread: capabilities belong to threads.
// Go itself can do that only without cgo, as this project is built; psx also in a
// program that has cgo in it, like any that uses package net where a C compiler is.
func onAllThreads(trap, a, b, c uintptr) error {
	if _, _, errno := psx.Syscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Held returns the calling thread's effective capabilities, as a bit set.
func Held() (uint64, error) {
	data, err := capabilities()
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), err
}

// sets are the effective, permitted and inheritable set.
func sets(d [2]unix.CapUserData) [3]uint64 {
	return [3]uint64{
		uint64(d[1].Effective)<<32 | uint64(d[0].Effective), uint64(d[1].Permitted)<<32 | uint64(d[0].Permitted),
		uint64(d[1].Inheritable)<<32 | uint64(d[0].Inheritable),
	}
}

func capabilities() (data [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return data, fmt.Errorf("privilege: capget: %w", err)
	}
	return data, nil
}
