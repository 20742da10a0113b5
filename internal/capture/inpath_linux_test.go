package capture_test

import (
	"errors"
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
)

// blaster sends frames of many flows as fast as it can, to nobody: the other end of the link
// looks at them in its taps and drops them, for their checksum is wrong, all in the sender's time.
type blaster struct {
	fd   int
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
		segment := wire.TCPSegment{TCPProbe: wire.TCPProbe{
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), uint16(1024+i)), Dst: netip.MustParseAddrPort("10.9.0.1:40000"),
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
// packet, over what it costs without a tap, and in the reader. The medians of rounds in which
// all take turns.
func BenchmarkInPath(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	receiver, sender := nstest.New(b), nstest.New(b)
	nstest.Veth(b, nstest.End{NS: receiver, Name: "eth0", Addrs: []string{"10.9.0.1/16"}}, nstest.End{NS: sender, Name: "eth0", Addrs: []string{"10.9.0.2/16"}})
	s := newBlaster(b, sender, receiver)
	open := map[string]func() (capture.Source, error){
		"untraced": nil,
		"nothing":  func() (capture.Source, error) { return capture.OpenNothing() },
		"ebpf":     func() (capture.Source, error) { return capture.OpenTap(capture.Config{UDP: true, Names: true}) },
		"afpacket": func() (capture.Source, error) { return capture.Open(capture.Config{UDP: true, Names: true}) },
	}
	names := []string{"untraced", "nothing", "ebpf", "afpacket"}
	path, cpu, lost := map[string][]float64{}, map[string][]float64{}, map[string]uint64{}
	const packets = 400_000
	for b.Loop() {
		for _, name := range names {
			var source capture.Source
			var read chan time.Duration
			if open[name] != nil {
				receiver.Must(b, func() (err error) { source, err = open[name](); return err })
				read = drain(source)
			}
			s.blast(b, 5*packets) // until all flows are known: their first packets are not what is asked for
			each := s.blast(b, packets)
			path[name] = append(path[name], float64(each.Nanoseconds()))
			if source != nil {
				lost[name] += source.Stats().Dropped
				source.Close()
				cpu[name] = append(cpu[name], float64((<-read).Nanoseconds())/(6*packets))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, name := range names {
		b.ReportMetric(median(path[name])-median(path["untraced"]), name+"-path-ns")
		if len(cpu[name]) > 0 {
			b.ReportMetric(median(cpu[name]), name+"-reader-ns")
		}
		if lost[name] > 0 {
			b.Logf("%s: %d packets dropped", name, lost[name])
		}
	}
	b.Logf("untraced: %.0f ns a packet", median(path["untraced"]))
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
	names := []string{"nothing", "called", "in-place"}
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
	slices.Sort(all)
	return all[len(all)/2]
}
