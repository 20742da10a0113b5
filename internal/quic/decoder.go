package quic

import "net/netip"

// Decoder is what the Conns of one goroutine share. Create it with NewDecoder.
type Decoder struct {
	limiter *Limiter
	scratch scratch
	stats   Stats
}

// Stats count. Seen is the sum of the four after it.
type Stats struct {
	Seen      uint64 // Initials from clients whose hello was not known yet
	Decrypted uint64
	Failed    uint64 // did not decrypt: not a client's, damaged, or of a connection joined late
	Limited   uint64 // keys were not derived: the allowance was spent
	Small     uint64 // in a datagram of fewer than MinDatagram bytes

	Malformed  uint64 // decrypted, but not made of frames that belong there, or of no hello
	Dropped    uint64 // CRYPTO frames and Initials beyond the bounds
	Retries    uint64 // Retry packets that were believed
	Done       uint64 // hellos that became whole
	Incomplete uint64 // hellos that were begun and given up
}

// NewDecoder returns a Decoder with an allowance of its own.
func NewDecoder(l Limits) *Decoder { return &Decoder{limiter: NewLimiter(l)} }

// Stats returns the counts so far.
func (d *Decoder) Stats() Stats { return d.stats }

// NewConn returns a Conn for a flow whose client has the given address: that is whose
// allowance its packets use. The invalid address stands for this host, see Limiter.
func (d *Decoder) NewConn(client netip.Addr) *Conn { return &Conn{d: d, client: client} }
