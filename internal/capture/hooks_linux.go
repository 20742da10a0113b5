package capture

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/netns"
)

// hooks keeps the programs of a Tap at the interfaces of one network namespace, also at those
// that appear later. The kernel takes a hook's interface from the namespace of the thread that
// asks, so one thread stays there for that.
type hooks struct {
	ask  chan struct{} // closed: stop
	done chan struct{}

	// Of the goroutine alone.
	wanted   []string // empty: all
	programs *ebpf.Collection
	at       map[int][]link.Link
	opened   bool // from here on an interface is better seen in part than not at all
}

// openHooks attaches the programs in the namespace of the calling thread.
func openHooks(wanted []string, programs *ebpf.Collection) (*hooks, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	h := &hooks{
		ask: make(chan struct{}), done: make(chan struct{}), wanted: wanted, programs: programs, at: map[int][]link.Link{},
	}
	first := make(chan error)
	go func() {
		defer close(h.done)
		// Never the process's first thread, which would stay in the namespace for good.
		_ = netns.Thread(func() error {
			if err := enterNetwork(here); err != nil {
				first <- err
				return nil
			}
			err := h.attach()
			h.opened = true
			first <- err
			if err == nil {
				h.keep()
			}
			h.detach()
			return nil
		})
	}()
	if err := <-first; err != nil {
		<-h.done
		return nil, err
	}
	return h, nil
}

// enterNetwork moves the thread, if it has to: that takes a capability.
func enterNetwork(there *os.File) error {
	var own, other unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return err
	}
	if err := unix.Fstat(int(there.Fd()), &other); err != nil {
		return err
	}
	if own.Ino == other.Ino && own.Dev == other.Dev {
		return nil
	}
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

// keep attaches to what appears.
func (h *hooks) keep() {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ask:
			return
		case <-tick.C:
			_ = h.attach() // what cannot be done is tried again
		}
	}
}

// attach attaches to the interfaces that are not yet, and forgets those that are gone.
func (h *hooks) attach() error {
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, name := range h.wanted {
		if len(h.at) == 0 && !slices.ContainsFunc(all, func(i net.Interface) bool { return i.Name == name }) {
			return fmt.Errorf("interface %q: %w", name, ErrNoInterface)
		}
	}
	var failed []error
	gone := make(map[int]bool, len(h.at))
	for index := range h.at {
		gone[index] = true
	}
	for _, i := range all {
		delete(gone, i.Index)
		if _, known := h.at[i.Index]; known || len(h.wanted) > 0 && !slices.Contains(h.wanted, i.Name) {
			continue
		}
		links, err := h.attachTo(i)
		if errors.Is(err, unix.ENODEV) {
			continue // it went meanwhile
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", i.Name, err))
			continue
		}
		h.at[i.Index] = links
	}
	for index := range gone {
		closeAll(h.at[index])
		delete(h.at, index)
	}
	return errors.Join(failed...)
}

// attachTo puts the programs where packets are as on the wire: the first to see what comes in,
// the last to see what goes out. What this host sends to itself is seen as it comes in.
func (h *hooks) attachTo(i net.Interface) ([]link.Link, error) {
	kind := "ethernet"
	if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) != 6 {
		kind = "bare" // no link header
	}
	if !h.opened && h.othersAt(i.Index, kind+"_egress") {
		return nil, errOthers
	}
	in, err := link.AttachTCX(link.TCXOptions{
		Interface: i.Index, Program: h.programs.Programs[kind+"_ingress"], Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, err
	}
	if i.Flags&net.FlagLoopback != 0 {
		return []link.Link{in}, nil
	}
	out, err := link.AttachTCX(link.TCXOptions{
		Interface: i.Index, Program: h.programs.Programs[kind+"_egress"], Attach: ebpf.AttachTCXEgress, Anchor: link.Tail(),
	})
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return []link.Link{in, out}, nil
}

// errOthers: the kernel asks no program at a hook after one that has decided what becomes of the
// packet, and what leaves is to be seen as it is on the wire, behind all.
var errOthers = errors.New("another program may decide about packets that leave before they are seen")

// othersAt reports whether programs that are not such as ours are at an interface's egress. Where
// that cannot be told, as without CAP_SYS_ADMIN, there are none.
func (h *hooks) othersAt(index int, name string) bool {
	all, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXEgress})
	if err != nil {
		return false
	}
	own, err := h.programs.Programs[name].Info()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all.Programs, func(p link.AttachedProgram) bool {
		other, err := ebpf.NewProgramFromID(p.ID)
		if err != nil {
			return false
		}
		defer other.Close()
		info, err := other.Info()
		return err == nil && info.Tag != own.Tag
	})
}

func (h *hooks) detach() {
	for _, links := range h.at {
		closeAll(links)
	}
}

func closeAll(links []link.Link) {
	for _, l := range links {
		_ = l.Close() // the interface may be gone, and its hooks with it
	}
}

func (h *hooks) close() error {
	close(h.ask)
	<-h.done
	return nil
}
