// Package errqueue reads what a socket's error queue (ip(7), IP_RECVERR; ipv6(7),
// IPV6_RECVERR) says of ICMP errors: which one, whose, with what TTL and when it came.
//
// decode.go is total and knows no socket; Read (Linux alone) takes entries from one. Callers
// are internal/ladder, whose socket is TCP, and internal/socket, whose one is UDP.
package errqueue
