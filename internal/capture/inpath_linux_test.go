package capture_test

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// blaster sends frames of many flows as fast as it can, to nobody: the other end of the link
// looks at them in its taps and drops them, for their checksum is wrong, all in the sender's time.
type blaster struct {
	fd   int
	keys []trace.FlowKey // as the receiver has them
	msgs []mmsghdr
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

const (
	blastFlows = 10_000
	blastBatch = 64
)

func newBlaster(b *testing.B, ns, to *nstest.NS) *blaster {
	s := &blaster{}
	frame := make([]byte, 14)
	to.Must(b, func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			copy(frame, link.HardwareAddr)
		}
		return err
	})
	copy(frame[6:], []byte{2, 0, 0, 0, 9, 8, 8, 0})
	ns.Must(b, func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: link.Index}))
	})
	b.Cleanup(func() { unix.Close(s.fd) })
	for i := range blastFlows {
		from, to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), uint16(1024+i)), netip.MustParseAddrPort("10.9.0.1:40000")
		s.keys = append(s.keys, trace.FlowKey{Proto: trace.TCP, Src: to, Dst: from})
		segment := wire.TCPSegment{TCPProbe: wire.TCPProbe{
			Src: from, Dst: to,
			TTL: 64, Flags: wire.ACK, Window: 1, Seq: uint32(i), Timestamp: true,
		}}
		frame := segment.AppendTo(slices.Clone(frame))
		frame[14+10] ^= 0xff // the header's checksum: what is seen in taps goes no farther
		iov := &unix.Iovec{Base: &frame[0]}
		iov.SetLen(len(frame))
		var m mmsghdr
		m.hdr.Iov = iov
		m.hdr.SetIovlen(1)
		s.msgs = append(s.msgs, m)
	}
	return s
}

// blast sends so many and returns the time of each.
func (s *blaster) blast(b *testing.B, n int) time.Duration {
	begin := time.Now()
	for sent := 0; sent < n; {
		at := sent % (len(s.msgs) - blastBatch)
		done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[at])), blastBatch, 0, 0, 0)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.ENOBUFS {
			b.Fatal(errno)
		}
		sent += int(done)
	}
	return time.Since(begin) / time.Duration(n)
}

// drain reads a source until it is closed, and tells what processor time that took.
func drain(source capture.Source) (done chan time.Duration) {
	done = make(chan time.Duration)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			if _, err := source.ReadBatch(); err != nil {
				var own unix.Rusage
				_ = unix.Getrusage(unix.RUSAGE_THREAD, &own)
				done <- time.Duration(own.Utime.Nano() + own.Stime.Nano())
				return
			}
		}
	}()
	return done
}

// BenchmarkInPath is what a packet of a flow that nobody follows costs: in the path of the
// packet, over what it costs without a tap, and in the reader. All take turns every few
// milliseconds, so that what else the machine does hits all; the medians of the differences in
// each turn, and the interval in which that lies with 95 %.
func BenchmarkInPath(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	receiver, sender := nstest.New(b), nstest.New(b)
	nstest.Veth(b, nstest.End{NS: receiver, Name: "eth0", Addrs: []string{"10.9.0.1/16"}}, nstest.End{NS: sender, Name: "eth0", Addrs: []string{"10.9.0.2/16"}})
	s := newBlaster(b, sender, receiver)
	const turn, before = 5000, 200 * blastFlows // packets; so many until all flows are known
	names := []string{"untraced", "nothing", "ebpf", "afpacket"}
	taps := map[string]*inPath{"untraced": {}}
	receiver.Must(b, func() (err error) {
		cfg := capture.Config{UDP: true, Names: true, Interfaces: []string{"lo"}} // until it is its turn
		for _, name := range names[1:] {
			t := &inPath{}
			if name == "afpacket" {
				var ring *capture.Ring
				if ring, err = capture.Open(cfg); err != nil {
					return err
				}
				t.source, t.there = ring, ring.Bind
			} else {
				var tap *capture.Tap
				if tap, err = capture.OpenTap(cfg); err != nil {
					return err
				}
				t.source, t.there = tap, tap.Hook(map[string]string{"nothing": "nothing", "ebpf": "ethernet_ingress"}[name])
			}
			taps[name] = t
			t.read = drain(t.source)
		}
		return nil
	})
	at := func(name string, link string) {
		if t := taps[name]; t.there != nil {
			receiver.Must(b, func() error { return t.there(link) })
		}
	}
	for _, name := range names {
		at(name, "eth0")
		s.blast(b, before)
		if follower, ok := taps[name].source.(capture.Follower); ok {
			for _, k := range s.keys {
				follower.Ignore(k, false) // as the engine does of those that no watch wants
			}
		}
		at(name, "lo")
	}
	for b.Loop() {
		for _, name := range names {
			at(name, "eth0")
			s.blast(b, turn/10)
			taps[name].path = append(taps[name].path, float64(s.blast(b, turn).Nanoseconds()))
			at(name, "lo")
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, name := range names[1:] {
		t := taps[name]
		var over []float64
		for i, ns := range t.path {
			over = append(over, ns-taps["untraced"].path[i])
		}
		low, mid, high := spread(over)
		b.ReportMetric(mid, name+"-path-ns")
		b.Logf("%s: %.0f ns (%.0f to %.0f)", name, mid, low, high)
		lost := t.source.Stats().Dropped
		t.source.Close()
		if packets := float64(b.N*turn*11/10 + before); name != "nothing" {
			b.ReportMetric(float64((<-t.read).Nanoseconds())/packets, name+"-reader-ns")
		} else {
			<-t.read
		}
		if lost > 0 {
			b.Logf("%s: %d packets dropped", name, lost)
		}
	}
	b.Logf("untraced: %.0f ns a packet", median(taps["untraced"].path))
}

// inPath is what packets pass by when it is its turn.
type inPath struct {
	source capture.Source
	there  func(link string) error // goes to the interface
	read   chan time.Duration
	path   []float64 // ns a packet, in each turn
}

// BenchmarkFilter is what a packet of one of many flows costs in its path with a packet socket
// there, over what it costs when the socket's filter lets nothing pass: with a filter that calls
// the kernel for each field, and with the one that is used. They take turns every few
// milliseconds, so that what else the machine does hits all.
func BenchmarkFilter(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	receiver, sender := nstest.New(b), nstest.New(b)
	nstest.Veth(b, nstest.End{NS: receiver, Name: "eth0", Addrs: []string{"10.9.0.1/16"}}, nstest.End{NS: sender, Name: "eth0", Addrs: []string{"10.9.0.2/16"}})
	s := newBlaster(b, sender, receiver)
	cfg := capture.Config{UDP: true, Names: true}
	var ring *capture.Ring
	receiver.Must(b, func() (err error) { ring, err = capture.Open(cfg); return err })
	read := drain(ring)
	names := []string{"nothing", "called", "in-place", "few"}
	each := map[string][]float64{}
	for b.Loop() {
		for _, name := range names {
			if err := ring.Attach(capture.Filters(cfg)[name]); err != nil {
				b.Fatal(err)
			}
			each[name] = append(each[name], float64(s.blast(b, 5000).Nanoseconds()))
		}
	}
	ring.Close()
	<-read
	b.ReportMetric(0, "ns/op")
	for _, name := range names[1:] {
		var over []float64 // in each turn
		for i, ns := range each[name] {
			over = append(over, ns-each["nothing"][i])
		}
		b.ReportMetric(median(over), name+"-path-ns")
	}
	b.Logf("with a filter that lets nothing pass: %.0f ns a packet", median(each["nothing"]))
}

func median(all []float64) float64 {
	_, mid, _ := spread(all)
	return mid
}

// spread is the median, and between which of the values it lies with 95 % (binomial).
func spread(all []float64) (low, mid, high float64) {
	slices.Sort(all)
	n := len(all)
	half := int(math.Ceil(0.98 * math.Sqrt(float64(n))))
	return all[max(n/2-half, 0)], all[n/2], all[min(n/2+half, n-1)]
}
