//go:build linux

package peer

import (
	"cmp"
	"fmt"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialer returns a dialer for the i-th flow of a client.
func (s Socket) dialer(i int) *net.Dialer {
	d := &net.Dialer{Control: s.control, KeepAlive: -1}
	d.SetMultipathTCP(s.MPTCP)
	if s.LocalPort != 0 {
		d.LocalAddr = &net.TCPAddr{Port: int(s.LocalPort) + i}
	}
	return d
}

// control sets what must be set before connect.
func (s Socket) control(network, _ string, raw syscall.RawConn) error {
	var err error
	ctrlErr := raw.Control(func(fd uintptr) { err = s.set(int(fd), strings.HasSuffix(network, "6")) })
	if ctrlErr != nil {
		return ctrlErr
	}
	return err
}

func (s Socket) set(fd int, ipv6 bool) error {
	if err := setCongestion(fd, s.Congestion); err != nil {
		return err
	}
	if s.ReceiveBuffer > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, s.ReceiveBuffer); err != nil {
			return fmt.Errorf("SO_RCVBUF: %w", err)
		}
	}
	if !s.RecvErr {
		return nil
	}
	// An IPv6 socket can carry IPv4, so it gets both.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil && !ipv6 {
		return fmt.Errorf("IP_RECVERR: %w", err)
	}
	if ipv6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1); err != nil {
			return fmt.Errorf("IPV6_RECVERR: %w", err)
		}
	}
	return nil
}

// setCongestion makes workloads behave alike on machines with different defaults.
// It is not done by sysctl, which namespaces may only set to algorithms that the
// machine allows to everybody.
func setCongestion(fd int, name string) error {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || proto == unix.IPPROTO_UDP {
		return err
	}
	err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, cmp.Or(name, "cubic"))
	if err != nil && name != "" {
		return fmt.Errorf("TCP_CONGESTION %s: %w", name, err)
	}
	return nil // not every kernel has cubic
}

// TCPInfo is the part of tcp_info(7) that tells how a connection fared. Times
// are in microseconds.
type TCPInfo struct {
	State         uint8
	Options       uint8 // TCPI_OPT_*: timestamps 1, SACK 2, window scale 4, ECN 8
	MSS           uint32
	RTT, RTTVar   uint32
	MinRTT        uint32
	TotalRetrans  uint32 // segments
	BytesRetrans  uint64
	BytesAcked    uint64
	BytesReceived uint64
	SegsOut       uint32
	SegsIn        uint32
	DSACKDups     uint32
	ReorderSeen   uint32
	OutOfOrder    uint32 // segments received out of order
	Rehash        uint32 // times the flow label or path was picked anew
}

func tcpInfo(conn net.Conn) (TCPInfo, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return TCPInfo{}, fmt.Errorf("tcp_info of a %T", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return TCPInfo{}, err
	}
	var info *unix.TCPInfo
	ctrlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if ctrlErr != nil {
		return TCPInfo{}, ctrlErr
	}
	if err != nil {
		return TCPInfo{}, err
	}
	return TCPInfo{
		State: info.State, Options: info.Options, MSS: info.Snd_mss,
		RTT: info.Rtt, RTTVar: info.Rttvar, MinRTT: info.Min_rtt,
		TotalRetrans: info.Total_retrans, BytesRetrans: info.Bytes_retrans,
		BytesAcked: info.Bytes_acked, BytesReceived: info.Bytes_received,
		SegsOut: info.Segs_out, SegsIn: info.Segs_in,
		DSACKDups: info.Dsack_dups, ReorderSeen: info.Reord_seen,
		OutOfOrder: info.Rcv_ooopack, Rehash: info.Rehash,
	}, nil
}
