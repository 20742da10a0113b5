package firewall

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Rule drops the ICMP errors about probes in one network namespace. Its methods may be
// called from any goroutine. Several Rules, also of several processes, do not disturb each
// other.
type Rule struct {
	mu    sync.Mutex
	fd    int
	table string
	life  time.Duration // of what it knows
	made  bool
	err   error // why it is of no use
	keys  keys
	out   messages
	in    [8192]byte
}

// Open prepares a Rule in the network namespace of the calling thread. Nothing is changed
// there before Ready is called, and no privilege is needed before.
func Open() (*Rule, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("firewall: open netlink: %w", err)
	}
	// Errors come without the whole of what they are about, netlink(7).
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("firewall: open netlink: %w", err), unix.Close(fd))
	}
	return &Rule{fd: fd, table: tablePrefix + hex.EncodeToString(id[:]), life: Lifetime}, nil
}

// Ready puts the rule in force, unless it is. It takes CAP_NET_ADMIN, and Add goes on
// taking it: the kernel asks for it in whoever opened the socket and in whoever sends. The
// answer stays the same: errors match os.ErrPermission without the capability; others come
// from kernels without nf_tables, or before Linux 5.12.
func (r *Rule) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready()
}

func (r *Rule) ready() error {
	if r.made || r.err != nil {
		return r.err
	}
	r.out.reset()
	err := r.out.appendTable(r.table, r.life)
	if err == nil {
		err = r.commit()
	}
	r.made = err == nil
	if err != nil {
		r.err = fmt.Errorf("firewall: add rule: %w", err)
	}
	return r.err
}

// Add makes the rule drop the errors about these probes, each a whole IP packet as it will
// be sent, for Lifetime. When it returns without an error they may leave. With an error
// none may: errors match syscall.ENFILE when Capacity is exhausted; after any other one the
// rule is of no use any more.
func (r *Rule) Add(probes ...[]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(probes) > 0 {
		n := min(len(probes), together)
		if err := r.add(probes[:n]); err != nil {
			return err
		}
		probes = probes[n:]
	}
	return nil
}

func (r *Rule) add(probes [][]byte) error {
	if err := r.ready(); err != nil {
		return err
	}
	r.keys.reset()
	for _, p := range probes {
		if err := r.keys.add(p); err != nil {
			return err
		}
	}
	r.out.reset()
	r.out.transaction(func() {
		r.out.appendElements(r.table, quotes4, r.keys.quotes4, quote4Len)
		r.out.appendElements(r.table, quotes6, r.keys.quotes6, quote6Len)
		r.out.appendElements(r.table, payloads, r.keys.payloads, payloadLen)
	})
	err := r.commit()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("firewall: add probes: %w", err)
	if !errors.Is(err, syscall.ENFILE) {
		r.err = err
	}
	return err
}

// Dropped is how many ICMP errors were dropped so far.
func (r *Rule) Dropped() (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.made {
		return 0, nil
	}
	r.out.reset()
	r.out.appendQuestion(r.table)
	if err := r.send(); err != nil {
		return 0, fmt.Errorf("firewall: ask for the counter: %w", err)
	}
	n, err := r.receive()
	if err == nil {
		var count uint64
		if count, err = packets(r.in[:n], r.out.seq); err == nil {
			return count, nil
		}
	}
	return 0, fmt.Errorf("firewall: read the counter: %w", err)
}

// Close removes the rule. Answers to probes that are still under way reach whoever they
// would have reached without it.
func (r *Rule) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return nil
	}
	if r.made {
		// It goes with the socket in any case, but that a child which is just being forked may
		// still hold; so a failure here, for want of the capability by now, is none.
		r.out.reset()
		r.out.removeTable(r.table)
		_ = r.commit()
	}
	err := unix.Close(r.fd)
	r.fd, r.made, r.err = -1, false, net.ErrClosed
	return err
}

// commit sends a transaction. The kernel does what it asks for, and answers, within the
// call that sends; so all answers are there when that returns.
func (r *Rule) commit() error {
	if err := r.send(); err != nil {
		return err
	}
	var o outcome
	for {
		n, err := r.receive()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return err
		}
		o.read(r.in[:n], r.out.acked)
	}
	if o.err == nil && !o.ack {
		return errShort
	}
	return o.err
}

func (r *Rule) send() error {
	for {
		err := unix.Sendto(r.fd, r.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

func (r *Rule) receive() (int, error) {
	for {
		n, _, err := unix.Recvfrom(r.fd, r.in[:], 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}
