package quic

import (
	"bytes"
	"net/netip"
	"time"

	"servicetraceroute/internal/hello"
)

const (
	// MinDatagram is the least size in bytes of a client's datagram with an Initial
	// (RFC 9000 section 14.1).
	MinDatagram = 1200
	// MinDCID is the least length in bytes of the id that a client makes up for its
	// server (RFC 9000 section 7.2).
	MinDCID     = 8
	maxInitials = 8 // that are looked at in one datagram
)

// Conn follows one UDP flow until its client's hello is known. It holds at most
// MaxCrypto bytes of it, and after that only the hello. Create it with
// Decoder.NewConn; it belongs to its Decoder's goroutine.
type Conn struct {
	d      *Decoder
	client netip.Addr
	hello  hello.Hello
	done   bool

	// Of the connection that the last Initial which decrypted belongs to.
	keys       keys
	dcid, scid cid // of its first one
	largest    int64
	crypto     *stream // not nil while keys are held
	checked    int     // bytes of the hello that were there when it was last looked at

	retried bool
	retry   cid // the id that a Retry told the client to use
}

// cid is a connection id.
type cid struct {
	b [maxCID]byte
	n uint8
}

func (c *cid) set(b []byte)              { c.n = uint8(copy(c.b[:], b)) }
func (c *cid) is(b []byte) bool          { return bytes.Equal(c.bytes(), b) }
func (c *cid) bytes() []byte             { return c.b[:c.n] }
func (c *Conn) fromRetry(p *Packet) bool { return c.retried && c.retry.is(p.DCID) }

// Client takes in a datagram that the client sent and tells what is known so far.
// Done stays. Not says that neither this datagram nor those before it began a hello:
// the flow is not QUIC, of a version that is not read, or its beginning was missed.
// Later ones may still begin one, for anybody can send junk; it is the caller's
// choice how long to wait, after Not as after More. The datagram is not kept.
func (c *Conn) Client(now time.Time, datagram []byte) (hello.Hello, hello.Status) {
	if c.done {
		return c.hello, hello.Done
	}
	quic := c.datagram(now, datagram)
	switch {
	case c.done:
		return c.hello, hello.Done
	case c.keys.held(), quic:
		return hello.Hello{}, hello.More
	}
	return hello.Hello{}, hello.Not
}

// datagram walks the packets that are coalesced in one (RFC 9000 section 12.2) and
// reports whether it may be QUIC of a version that is read.
func (c *Conn) datagram(now time.Time, datagram []byte) (quic bool) {
	var p Packet
	var dcid []byte // of the first packet; those to somewhere else are not for this server
	initials, tried := 0, untried
	for rest := datagram; len(rest) > 0; {
		var err error
		rest, err = p.Decode(rest)
		if err != nil || p.known == nil {
			return quic || err == nil && p.Type == Unknown && isReserved(p.Version)
		}
		if dcid == nil {
			dcid = p.DCID
		}
		if !bytes.Equal(p.DCID, dcid) {
			return quic
		}
		if p.Type != Initial {
			quic = true
			continue
		}
		if initials++; initials > maxInitials {
			c.d.stats.Dropped++
			return quic
		}
		c.d.stats.Seen++
		if len(datagram) < MinDatagram {
			c.d.stats.Small++
			return quic
		}
		quic = c.initial(now, &p, &tried) || quic
		if c.done {
			return true
		}
	}
	return quic
}

// try is what became of a datagram's one try at new keys: all its packets have the
// same id, and so would have the same keys.
type try uint8

const (
	untried try = iota
	refused
	failed
)

// initial takes in one Initial and reports whether it may be a client's.
func (c *Conn) initial(now time.Time, p *Packet, tried *try) bool {
	d := c.d
	if payload, number, ok := c.keys.open(&d.scratch, p, c.largest); ok {
		return c.opened(payload, number)
	}
	// Of another connection than the one that was followed so far, if of any: after a
	// Retry, after Version Negotiation, when the ports are used again, and the first.
	switch {
	case len(p.DCID) < MinDCID && !c.fromRetry(p):
		d.stats.Failed++
		return false
	case *tried == failed, c.keys.held() && c.keys.known == p.known && c.dcid.is(p.DCID):
		d.stats.Failed++
		return true
	case *tried == refused, !d.limiter.Allow(now, c.client):
		*tried = refused
		d.stats.Limited++
		return true
	}
	k := clientKeys(p.known, p.DCID)
	payload, number, ok := k.open(&d.scratch, p, -1)
	if !ok {
		*tried = failed
		d.stats.Failed++
		return true
	}
	c.restart(k, p)
	return c.opened(payload, number)
}

// restart follows another connection from here on, or the same after a Retry: its
// hello begins again.
func (c *Conn) restart(k keys, p *Packet) {
	if !c.fromRetry(p) {
		c.Close()
	}
	c.keys, c.largest = k, -1
	c.dcid.set(p.DCID)
	c.scid.set(p.SCID)
	c.crypto, c.checked = new(stream), 0
}

// opened takes in what an Initial said. It is false when that was no hello.
func (c *Conn) opened(payload []byte, number int64) bool {
	d := c.d
	d.stats.Decrypted++
	c.largest = max(c.largest, number)
	if !legal(payload) {
		d.stats.Malformed++
		return true
	}
	for len(payload) > 0 {
		f, rest, ok := next(payload)
		if !ok {
			break
		}
		if f.typ == frameCrypto && !c.crypto.add(f.offset, f.data) {
			d.stats.Dropped++
		}
		payload = rest
	}
	msg := c.crypto.prefix()
	if len(msg) == c.checked {
		return true
	}
	c.checked = len(msg)
	switch h, s := hello.Handshake(msg); s {
	case hello.Done:
		c.hello, c.done = h, true
		d.stats.Done++
		c.forget()
	case hello.Not:
		d.stats.Malformed++
		c.forget()
		return false
	}
	return true
}

// forget gives back what only an unfinished hello needs.
func (c *Conn) forget() {
	c.keys, c.crypto, c.checked, c.retried = keys{}, nil, 0, false
}

// ID is the id to which the hello was sent, as the client made it up or a Retry told it;
// empty as long as the hello is not known. It is the Conn's.
func (c *Conn) ID() []byte {
	if !c.done {
		return nil
	}
	return c.dcid.bytes()
}

// Server takes in a datagram that the server sent. Only a Retry matters: the client
// then begins again with the id that it names, which may be shorter than a client's
// own. It is believed when its tag shows that who made it saw the client's Initial,
// and once, as the client does (RFC 9000 section 17.2.5.2).
func (c *Conn) Server(datagram []byte) {
	if c.done || c.retried || !c.keys.held() {
		return
	}
	var p Packet
	if _, err := p.Decode(datagram); err != nil || p.Type != Retry || p.known != c.keys.known {
		return
	}
	if len(p.Token) == 0 || !c.scid.is(p.DCID) || c.dcid.is(p.SCID) || !checkRetry(&c.d.scratch, &p, c.dcid.bytes()) {
		return
	}
	c.d.stats.Retries++
	c.retried = true
	c.retry.set(p.SCID)
}

// Close tells that no more datagrams will come. The Conn is as new after it, but for
// a hello that is known.
func (c *Conn) Close() {
	if !c.done && c.keys.held() {
		c.d.stats.Incomplete++
	}
	c.forget()
}
