// Package wire decodes and encodes packets: IPv4, IPv6, TCP, UDP, ICMP, ICMPv6
// and the packets quoted in ICMP errors. Decoding is total (any bytes give a
// value or an error, never a panic), allocates nothing and copies nothing: slices
// alias their input. It imports the standard library only and does no I/O.
//
// Checksums are written but never verified: captured outgoing packets have
// partial ones when a device computes them.
package wire
