// Package quic reads the hello in a QUIC client's Initial packets, versions 1
// (RFC 9000, RFC 9001) and 2 (RFC 9369). Their keys follow from the connection id
// that the client chose, so that whoever sees them can read them; all that comes
// after is out of reach, and none of our business.
//
// A Conn follows one UDP flow: it is handed the client's datagrams, and the
// server's, until the hello is whole, in whatever order and pieces they come. A
// Decoder is what all of them share: the allowance for deriving keys, which is what
// junk could make us spend, the counters, and memory to decrypt into. Decoding is
// total (any bytes give an answer, never a panic), every buffer is bounded, and what
// does not decrypt changes nothing: a packet is believed only when its AEAD tag is
// right.
//
// There is no I/O here and no clock: time is an argument. A Decoder and its Conns
// belong to one goroutine.
package quic
