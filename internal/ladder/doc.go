// Package ladder traces the path of a TCP connection that is about to be made, without
// any capability: it connects SYN by SYN, each with one TTL more, all from one local address
// and port, until one of them reaches the destination and is the connection.
//
// Climb decides, reads no clock and has no socket; Ladder (Linux alone) holds the port and
// makes the attempts; internal/errqueue reads what their error queues say. The command's dial calls
// them; why it is done this way is in docs/decisions/0048-sock.md.
package ladder
