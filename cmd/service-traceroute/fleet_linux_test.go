package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/netns"
	"servicetraceroute/trace"
)

// inhabited is a namespace with a process in it, as a container is. leave ends the
// process.
func inhabited(t *testing.T) (n *nstest.NS, name string, leave func()) {
	t.Helper()
	n = nstest.New(t)
	cmd := exec.Command("sleep", "60")
	n.Must(t, cmd.Start)
	ended := false
	leave = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(leave)
	ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return n, fmt.Sprintf("net:[%d]", ns.ID.Inode), leave
}

// distant is the address of this process's flows: all namespaces of the machine are
// watched, also those of a test that runs beside this one.
var distant = netip.AddrFrom4([4]byte{198, 19, byte(os.Getpid() >> 6), byte(os.Getpid()<<2) | 2})

// connection is a flow of some seconds from a to distant in b.
func connection(t *testing.T, a, b *nstest.NS) {
	t.Helper()
	nstest.Veth(t, nstest.End{NS: a, Name: "eth0", Addrs: []string{distant.Prev().String() + "/30"}}, nstest.End{NS: b, Name: "eth0", Addrs: []string{distant.String() + "/30"}})
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(distant, 443))
	var l net.Listener
	b.Must(t, func() (err error) { l, err = net.ListenTCP("tcp4", at); return err })
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	var c net.Conn
	a.Must(t, func() (err error) { c, err = net.DialTCP("tcp4", nil, at); return err })
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 10)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}()
}

// Every namespace is watched, those that come later too; one without a process is
// left, though our own sockets would keep it alive.
func TestFleet(t *testing.T) {
	before := runtime.NumGoroutine()
	first, name, _ := inhabited(t)
	peer, _, leave := inhabited(t)
	var talk bytes.Buffer
	f, err := openFleet(servicetraceroute.Config{Label: "all of them"}, &talk)
	if err != nil {
		t.Fatal(err)
	}
	members := len(f.members)
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	connection(t, first, peer)
	var laterName string
	var last *trace.Stats
	found := map[string]int{}
	for ev, err := range f.Watch(ctx, servicetraceroute.Selection{Hosts: []string{distant.String()}}) {
		if err != nil {
			t.Fatal(err)
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			found[ev.Flow.NetNS]++
			if laterName == "" {
				var later *nstest.NS
				later, laterName, _ = inhabited(t)
				connection(t, later, nstest.New(t))
				leave()
			} else if ev.Flow.NetNS == laterName {
				time.AfterFunc(3*lookEvery, cancel)
			}
		case *trace.Stats:
			last = ev
		}
	}
	if found[name] != 1 || laterName == "" || found[laterName] != 1 || len(found) != 2 {
		t.Errorf("traces by namespace %v, want one in %q and one in %q", found, name, laterName)
	}
	if last == nil || last.Traces.Done != 2 || last.Traces.ByStop[trace.StopDestination] != 2 || last.Label != "all of them" || last.Backend != "afpacket" {
		t.Errorf("the last record is %+v", last)
	}
	if len(f.members) != 0 || members < 2 {
		t.Errorf("%d members at first, %d at the end", members, len(f.members))
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if talk.Len() > 0 {
		t.Logf("said: %s", talk.String())
	}
	for deadline := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > before+12; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // 12: the connections of this test
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// Another selection is that of all namespaces, those that come later too.
func TestFleetSetSelection(t *testing.T) {
	first, name, _ := inhabited(t)
	peer, _, _ := inhabited(t)
	f, err := openFleet(servicetraceroute.Config{}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	connection(t, first, peer)
	var changing sync.WaitGroup
	defer changing.Wait()
	change := func() {
		changing.Go(func() {
			if err := f.SetSelection(ctx, servicetraceroute.Selection{Hosts: []string{distant.String()}}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	laterName := ""
	found := map[string]bool{}
	for ev, err := range f.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}, Ready: change}) {
		if err != nil {
			t.Fatal(err)
		}
		tr, ok := ev.(*trace.Trace)
		if !ok {
			continue
		}
		found[tr.Flow.NetNS] = true
		if found[name] && laterName == "" {
			var later *nstest.NS
			later, laterName, _ = inhabited(t)
			connection(t, later, nstest.New(t))
		}
		if found[laterName] {
			cancel()
		}
	}
	if !found[name] || !found[laterName] {
		t.Errorf("traces in %v, want some in %q and %q", found, name, laterName)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A namespace that is gone has no member any more.
func TestFleetLeaves(t *testing.T) {
	_, name, leave := inhabited(t)
	f, err := openFleet(servicetraceroute.Config{NoProbe: true}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*lookEvery)
	defer cancel()
	// Others on this machine come and go as well.
	watched := func() (yes bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, m := range f.members {
			yes = yes || m.name == name
		}
		return yes
	}
	before, later := watched(), make(chan bool, 1)
	leave()
	time.AfterFunc(3*lookEvery+lookEvery/2, func() { later <- watched() })
	for _, err := range f.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if after := <-later; !before || after {
		t.Errorf("watched at first: %v, after it was gone: %v", before, after)
	}
}

// All counters are summed, whatever they are.
func TestFleetSums(t *testing.T) {
	f := &fleet{ended: trace.Stats{Traces: trace.TraceStats{ByStop: map[trace.Stop]uint64{}}}, members: map[netns.ID]*member{}}
	for i := range uint64(3) {
		m := &member{id: netns.ID{Inode: i}}
		m.last = &trace.Stats{
			Probes: trace.ProbeStats{Sent: 5}, Owners: &trace.OwnerStats{Asked: 2},
			Traces: trace.TraceStats{Done: 1, ByStop: map[trace.Stop]uint64{trace.StopBorder: 1}}, Flows: trace.FlowStats{Live: 4, Matched: 1},
		}
		f.members[m.id] = m
		if i == 0 {
			f.leave(m)
		}
	}
	s := f.Stats()
	if s.Probes.Sent != 15 || s.Owners == nil || s.Owners.Asked != 6 || s.Traces.ByStop[trace.StopBorder] != 3 || s.Flows.Live != 8 || s.Flows.Matched != 3 {
		t.Errorf("%+v %+v", s, s.Owners)
	}
}
