package capture

import (
	"net/netip"
	"time"
)

// Answer is one packet that came for this host, from its transport header on.
type Answer struct {
	From  netip.Addr
	Proto uint8 // 1 ICMP, 6 TCP, 58 ICMPv6
	TTL   uint8 // or hop limit; 0: the kernel did not tell
	Data  []byte
	Time  time.Time // the kernel's, or that of reading; of the wall clock
}
