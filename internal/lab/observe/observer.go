//go:build linux

package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/lab/tap"
)

const (
	// snap holds an ICMPv6 error up to the TCP timestamp option or the UDP payload
	// that it quotes.
	snap       = 160
	ringFrames = 8192
	// pause lets packets gather: nobody waits for the records, and waking up for
	// every packet would take from what is measured.
	pause = 5 * time.Millisecond
	// ending is how soon an observer notices that it is to end.
	ending = 200 * time.Millisecond
)

// witness is the state of one node.
type witness struct {
	mu sync.Mutex
	o  *observer
}

var errNotStarted = errors.New("observe: not started")

func (w *witness) start(ctx context.Context, cfg Config) (none, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o != nil {
		return none{}, errors.New("observe: started already")
	}
	o, err := newObserver(cfg)
	if err != nil {
		return none{}, fmt.Errorf("observe: %w", err)
	}
	life, cancel := context.WithCancel(node.Background(ctx))
	o.cancel = cancel
	go o.run(life)
	w.o = o
	return none{}, nil
}

func (w *witness) fetch(_ context.Context, arg fetchArg) (Log, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o == nil {
		return Log{}, errNotStarted
	}
	return w.o.fetch(arg.Clear)
}

func (w *witness) stop(context.Context, none) (none, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o == nil {
		return none{}, errNotStarted
	}
	w.o.cancel()
	<-w.o.done
	w.o = nil
	return none{}, nil
}

// observer reads a ring into a recorder.
type observer struct {
	cancel context.CancelFunc
	done   chan struct{}
	names  map[int]string // of interfaces

	mu     sync.Mutex // guards the rest between run and fetch
	ring   *tap.Ring  // nil at the end
	rec    *recorder
	missed uint64 // by the ring, when the log was last cleared
}

func newObserver(cfg Config) (*observer, error) {
	local, err := localAddrs()
	if err != nil {
		return nil, err
	}
	o := &observer{done: make(chan struct{}), names: map[int]string{}, rec: newRecorder(cfg, local)}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, it := range interfaces {
		o.names[it.Index] = it.Name
	}
	o.ring, err = tap.Open(tap.Config{Snap: snap, Frames: ringFrames, Filter: filter})
	return o, err
}

func localAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var local []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, fmt.Errorf("address of an interface: %w", err)
		}
		local = append(local, p.Addr().Unmap())
	}
	return local, nil
}

// filter passes IPv4 and IPv6, and nothing of loopback interfaces, which show
// every packet twice.
//
//	ldh [ad+0]    ; SKF_AD_PROTOCOL
//	jeq 0x0800 / 0x86dd, else drop
//	ldh [ad+28]   ; SKF_AD_HATYPE
//	jeq ARPHRD_LOOPBACK: drop
var filter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: skfAD},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jt: 1},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IPV6, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: skfAD + 28},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ARPHRD_LOOPBACK, Jt: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: snap},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// skfAD is SKF_AD_OFF of linux/filter.h, -0x1000.
const skfAD = 0xfffff000

// run drains the ring until the observer's life ends.
func (o *observer) run(life context.Context) {
	defer close(o.done)
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.ring.Close()
		o.ring = nil
	}()
	fds := []unix.PollFd{{Fd: int32(o.ring.FD()), Events: unix.POLLIN}}
	for life.Err() == nil {
		n, err := unix.Poll(fds, int(ending.Milliseconds()))
		if n > 0 || err != nil {
			time.Sleep(pause)
		}
		o.mu.Lock()
		o.drain()
		o.mu.Unlock()
	}
}

func (o *observer) drain() {
	for {
		f, ok := o.ring.Next()
		if !ok {
			return
		}
		if f.Net < 0 || f.Net > len(f.Data) {
			continue
		}
		name := o.names[f.Interface]
		if name == "" {
			name = fmt.Sprintf("if%d", f.Interface) // made after the start
		}
		o.rec.add(time.Unix(0, f.Time), name, f.Outgoing, f.Data[f.Net:])
	}
}

func (o *observer) fetch(clear bool) (Log, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring == nil {
		return Log{}, errNotStarted
	}
	o.drain()
	l := o.rec.log()
	total := o.ring.Dropped()
	l.Dropped.Ring = total - o.missed
	if clear {
		o.missed = total
		o.rec.clear()
	}
	return l, nil
}
