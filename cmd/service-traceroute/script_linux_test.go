package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/privilege"
)

func init() { programs["without"] = without }

// TestScriptsLinux runs the command line where a socket would be opened and
// cannot be.
func TestScriptsLinux(t *testing.T) {
	if os.Geteuid() != 0 {
		nstest.Skip(t, "needs root, to meet the errors behind that of missing privileges")
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/linux", Cmds: commands})
}

// without THING COMMAND… runs a command that lacks something: privileges, or what
// a smaller kernel does not have.
func without() {
	runtime.LockOSThread() // filters and capabilities belong to threads; the last one executes
	var err error
	switch what := os.Args[1]; what {
	case "privileges":
		err = privilege.Drop()
	case "packet":
		err = refuse(unix.SYS_SOCKET, 0, unix.AF_PACKET, unix.EAFNOSUPPORT)
	case "ring":
		err = refuse(unix.SYS_SETSOCKOPT, 2, unix.PACKET_VERSION, unix.ENOPROTOOPT)
	case "waiting": // for any child
		err = refuse(unix.SYS_WAIT4, 0, math.MaxUint32, unix.ECHILD)
	default:
		err = fmt.Errorf("without what? %q", what)
	}
	if err == nil {
		var path string
		if path, err = exec.LookPath(os.Args[2]); err == nil {
			err = unix.Exec(path, os.Args[2:], os.Environ())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(99)
}

// refuse makes a system call fail when one of its arguments has that value
// (seccomp(2)).
func refuse(call, arg, value uint32, errno unix.Errno) error {
	const number, args = 0, 16 // of struct seccomp_data; the lower half of an argument on little endian
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: number, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 3},
		bpf.LoadAbsolute{Off: args + 8*arg, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
	var filter []unix.SockFilter
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	for _, in := range raw {
		filter = append(filter, unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K})
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
