// Package socket traces with one connected UDP socket of our own, without any capability:
// it is the connection that an application uses (net.PacketConn, net.Conn), the Source that
// shows a Tracer this flow's packets and the ICMP errors about them, and the Sink that sends
// the probes.
//
// No packet is seen. The headers that the Source shows are put together from what the kernel
// tells of each datagram (packets.go): ends, length, TTL, time; what it does not tell is zero.
// The application hears of no ICMP error once its connection stands, whoever those are about.
// Why it is done this way is in docs/decisions/0050-sock-quic.md.
package socket
