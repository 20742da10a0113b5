// Package hello reads the first bytes that a client sends: the name in a TLS
// ClientHello or in the head of an HTTP/1 request. It is handed the beginning of
// the client's byte stream, in order and without gaps, again and again as more of
// it arrives, and says whether it needs more, is done, or reads no hello in it.
//
// It keeps no state, does no I/O and reads no clock; flows, reassembly and waiting
// are its caller's, package quic's for QUIC. Decoding is total (any bytes give an
// answer, never a panic) and nothing is allocated but what a Hello holds. What an
// illegal hello says is not told: a server would refuse it, so it names no service.
package hello
