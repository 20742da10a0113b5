package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace. As long as it is open it exists, also
// without a process in it.
type Namespace struct {
	ID   ID
	Name string // of ip-netns(8), else as the kernel writes it: "net:[4026531840]"
	file *os.File
}

// Open opens a namespace: where is a name of ip-netns(8) or the path of its file,
// such as /proc/PID/ns/net. Errors match ErrNone and os.ErrPermission.
func Open(where string) (*Namespace, error) {
	n, err := open(path(where))
	if errors.Is(err, os.ErrPermission) {
		return nil, &AccessError{where, err}
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", where, err)
	}
	if n.Name == "" {
		n.Name = where
	}
	return n, nil
}

func open(name string) (*Namespace, error) {
	// Not blocking: the name may turn out to be a pipe's.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	n := &Namespace{file: os.NewFile(uintptr(fd), name)}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(errors.New("this file is no network namespace"), n.Close())
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.ID = ID{uint64(st.Dev), st.Ino}
	return n, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Path names the open namespace for the rest of this process, whatever became of
// the file that it was opened by.
func (n *Namespace) Path() string { return "/proc/self/fd/" + strconv.Itoa(int(n.file.Fd())) }

// Do runs f on a thread in the namespace. Descriptors that f itself makes belong
// to it; goroutines that f starts run elsewhere. Errors match os.ErrPermission
// without CAP_SYS_ADMIN.
func (n *Namespace) Do(f func() error) error {
	return Thread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return &AccessError{n.Name, err}
		}
		return f()
	})
}

// Thread runs f on a thread that ends with it, so that nothing else can run by
// accident in the namespace that f enters.
//
// The process's first thread is left out: it does not end (Go parks it), and what
// it is in shows as the whole process's, in /proc/PID/ns and /proc/net.
//
// When f ends its goroutine (runtime.Goexit, as testing.T.FailNow does), Thread ends the caller's.
func Thread(f func() error) (err error) {
	done, returned := make(chan struct{}), false
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			err = Thread(f) // gets another one, since this one is held meanwhile
		} else {
			err = f() // never unlocked
		}
		returned = true
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// Do runs f in the namespace that where names, see Open; "" is the caller's own,
// in which f runs on the calling thread.
func Do(where string, f func() error) error {
	if where == "" {
		return f()
	}
	n, err := Open(where)
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Do(f)
}

// Names are those that ip-netns(8) gave.
func Names() (names []string) {
	list, _ := os.ReadDir(path(""))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// List opens all namespaces that have a name or a process, at most limit, those
// with a name first; more is how many there are beyond. Those that may not be
// looked at, and processes that end meanwhile, are passed over.
func List(limit int) (all []*Namespace, more int) {
	seen := map[ID]bool{}
	add := func(file, name string) {
		id, ok := identify(file)
		if !ok || seen[id] {
			return
		}
		if len(all) >= limit {
			seen[id] = true
			more++
			return
		}
		n, err := open(file)
		if err != nil || seen[n.ID] {
			if err == nil {
				n.Close()
			}
			return
		}
		seen[n.ID] = true
		if n.Name = name; name == "" {
			n.Name = "net:[" + strconv.FormatUint(n.ID.Inode, 10) + "]"
		}
		all = append(all, n)
	}
	for _, name := range Names() {
		add(path(name), name)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, file := range processes {
		add(file, "")
	}
	return all, more
}

// identify looks without opening: most processes share a namespace.
func identify(file string) (ID, bool) {
	var st unix.Stat_t
	if unix.Stat(file, &st) != nil {
		return ID{}, false
	}
	return ID{uint64(st.Dev), st.Ino}, true
}

// Own is the calling thread's namespace.
func Own() (ID, error) {
	const own = "/proc/thread-self/ns/net"
	id, ok := identify(own)
	if !ok {
		return id, errors.New("netns: " + own + " cannot be read")
	}
	return id, nil
}
