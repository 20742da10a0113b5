package selftest

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"

	"servicetraceroute/internal/lab"
)

// things count what a Tracer puts into a network namespace, by what it is.
type things map[string]int

// The things.
const (
	tables   = "nftables tables"
	programs = "eBPF programs at interfaces"
	sockets  = "packet sockets"
)

// thingsAt counts what there is in a node's namespace. What the kernel has not got, or
// does not show to this process, it gave to no Tracer of this process either.
func thingsAt(n *lab.Node) (things, error) {
	found := things{}
	err := n.Do(func() error {
		if c, err := nftables.New(); err == nil {
			if all, err := c.ListTables(); err == nil {
				found[tables] = len(all)
			}
		}
		list, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range list {
			for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				if r, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: hook}); err == nil {
					found[programs] += len(r.Programs)
				}
			}
		}
		open, err := os.ReadFile("/proc/thread-self/net/packet")
		found[sockets] = max(bytes.Count(open, []byte("\n"))-1, 0) // the first line is a heading
		return err
	})
	return found, err
}

// more names what there is more of than before.
func (t things) more(before things) (what []string) {
	for _, name := range []string{tables, programs, sockets} {
		if t[name] > before[name] {
			what = append(what, name)
		}
	}
	return what
}

// spaces are the network namespaces of a lab. Its files are open, or the kernel would
// give a number to another namespace as soon as the first one is gone.
type spaces struct {
	files  []*os.File
	number map[string]bool // as files of namespaces are links to
}

// spacesOf holds the namespaces of all of a lab's processes until close.
func spacesOf(l *lab.Lab) (*spaces, error) {
	nodes := []*lab.Node{l.Link(slow)}
	for _, n := range l.Layout().Network.Nodes {
		nodes = append(nodes, l.Node(n.Name))
	}
	s := &spaces{number: map[string]bool{}}
	for _, n := range nodes {
		name := filepath.Join("/proc", strconv.Itoa(n.Pid()), "ns/net")
		f, err := os.Open(name)
		if err != nil {
			s.close()
			return nil, err
		}
		s.files = append(s.files, f)
		number, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd()))))
		if err != nil {
			s.close()
			return nil, err
		}
		s.number[number] = true
	}
	return s, nil
}

func (s *spaces) close() {
	for _, f := range s.files {
		_ = f.Close() // of a namespace, which has nothing to write
	}
}

// inhabitants counts the processes that are in one of them.
func (s *spaces) inhabitants() (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, f := range files {
		if number, err := os.Readlink(f); err == nil && s.number[number] {
			n++
		}
	}
	return n
}
