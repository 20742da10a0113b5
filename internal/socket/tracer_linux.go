package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// Source shows a Tracer the socket's packets. Closing it leaves the socket open.
type Source struct {
	s       *Socket
	waiting deadline
	once    sync.Once
	closed  chan struct{}
}

// Source returns the socket's source. There is one: each packet is handed out once.
func (s *Socket) Source() *Source { return &Source{s: s, closed: make(chan struct{})} }

// ReadBatch implements capture.Source.
func (r *Source) ReadBatch() ([]capture.Packet, error) {
	for {
		passed := r.waiting.passed()
		switch {
		case isClosed(r.closed):
			return nil, net.ErrClosed
		case isClosed(passed):
			return nil, os.ErrDeadlineExceeded
		}
		if all := r.s.queue.take(); len(all) > 0 {
			return all, nil
		}
		select {
		case <-r.s.queue.ready:
		case <-r.closed:
		case <-passed:
		}
	}
}

// SetReadDeadline implements capture.Source.
func (r *Source) SetReadDeadline(t time.Time) error {
	r.waiting.set(t)
	return nil
}

// InterfaceName implements capture.Source.
func (r *Source) InterfaceName(index int) string {
	if index != r.s.flow.ifindex {
		return ""
	}
	return r.s.name
}

// LocalAddrs tells the address that is this host's.
func (r *Source) LocalAddrs() ([]netip.Addr, error) { return []netip.Addr{r.s.flow.local.Addr()}, nil }

// Deaf reports that the application hears of no ICMP error about a probe.
func (r *Source) Deaf() bool { return true }

// Stats implements capture.Source.
func (r *Source) Stats() capture.Stats { return r.s.queue.counted() }

// Close implements capture.Source.
func (r *Source) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// Sink sends a Tracer's probes from the socket. Closing it leaves the socket open.
type Sink struct{ s *Socket }

// Sink returns the socket's sink.
func (s *Socket) Sink() Sink { return Sink{s} }

// Intact reports that over IPv4 no datagram can be damaged: the kernel writes lengths and
// checksums as they should be.
func (k Sink) Intact(dst netip.Addr) bool { return dst.Is4() }

// Send implements inject.Sink: the kernel sends the probe's datagram the way it sends the
// flow's own, with the probe's TTL and, over IPv6, without checksum where the probe has none.
func (k Sink) Send(packet []byte, _ int, _ capture.HardwareAddr) error {
	var ip wire.Packet
	var u wire.UDP
	err := ip.Decode(packet, len(packet))
	if err == nil && ip.Proto != wire.ProtoUDP {
		err = errors.New("no datagram")
	}
	if err == nil {
		err = u.Decode(ip.Transport, ip.TransportLen)
	}
	f := k.s.flow
	switch {
	case err != nil:
		return fmt.Errorf("socket: send: %w", errors.Join(err, syscall.EINVAL))
	case netip.AddrPortFrom(ip.Src, u.SrcPort) != f.local || netip.AddrPortFrom(ip.Dst, u.DstPort) != f.remote:
		return fmt.Errorf("socket: send: a probe of another flow: %w", syscall.EINVAL)
	case ip.TransportLen != u.Len:
		return fmt.Errorf("socket: send: a datagram shorter than its packet: %w", syscall.EINVAL)
	}
	k.s.probeLen.Store(int64(u.PayloadLen))
	k.s.queue.put(f.sent(time.Now(), ip.TTL, u.Payload))
	err = k.s.sendProbe(u.Payload, ttlMessage(ip.Version, ip.TTL), ip.Version == 6 && u.Checksum == 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN):
		err = syscall.ENOBUFS // the socket's own buffer is full
	}
	return fmt.Errorf("socket: send: %w", err)
}

// Close implements inject.Sink.
func (k Sink) Close() error { return nil }

// sendProbe sends a datagram with a control message. Nothing else leaves without checksum:
// the option holds for all that is sent meanwhile.
func (s *Socket) sendProbe(payload, control []byte, noChecksum bool) (err error) {
	if !noChecksum {
		return s.send(payload, control, unix.MSG_DONTWAIT)
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 0))
	}()
	return s.sendLocked(payload, control, unix.MSG_DONTWAIT)
}

// ttlMessage is a control message (cmsg(3)) that gives one datagram its TTL.
func ttlMessage(version, ttl uint8) []byte {
	level, typ := uint32(unix.IPPROTO_IP), uint32(unix.IP_TTL)
	if version == 6 {
		level, typ = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	b := make([]byte, unix.CmsgSpace(4))
	head := unix.CmsgLen(0) // its first field is as long as a pointer, the other two are 4 bytes
	if head-8 >= 8 {
		binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(4)))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(unix.CmsgLen(4)))
	}
	binary.NativeEndian.PutUint32(b[head-8:], level)
	binary.NativeEndian.PutUint32(b[head-4:], typ)
	binary.NativeEndian.PutUint32(b[head:], uint32(ttl))
	return b
}
