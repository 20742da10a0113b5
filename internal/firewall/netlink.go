package firewall

import (
	"encoding/binary"
	"errors"
	"syscall"
)

// The messages of nf_tables are netlink's: a header in the host's byte order, then the
// family, then attributes, which nest and whose numbers are in network byte order.
//
//	|            length             |     type      |     flags     |   netlink(7)
//	|        sequence number        |            port id            |
//	| family| version| resource id  |  attributes…                      nfnetlink.h
const (
	nlmsgHeader = 16
	nfgenHeader = 4
	attrHeader  = 4
	nested      = 0x8000

	flagRequest, flagAck             = 1, 4
	flagExcl, flagCreate, flagAppend = 0x200, 0x400, 0x800

	msgError, msgBegin, msgEnd = 2, 0x10, 0x11
	subsystem                  = 10 // NFNL_SUBSYS_NFTABLES
	familyINet                 = 1  // NFPROTO_INET: IPv4 and IPv6
)

// messages are netlink messages in the making.
type messages struct {
	b    []byte
	at   int   // where the newest message begins
	open []int // where the attributes begin that are not closed
	seq  uint32
	// acked is the number of the message whose acknowledgement is that of the newest
	// transaction.
	acked uint32
}

// reset forgets them; sequence numbers go on.
func (m *messages) reset() { m.b, m.open = m.b[:0], m.open[:0] }

// begin begins a message.
func (m *messages) begin(kind, flags uint16, family uint8, resource uint16) {
	m.at = len(m.b)
	m.seq++
	m.b = binary.NativeEndian.AppendUint32(m.b, 0) // the length, see end
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = binary.NativeEndian.AppendUint16(m.b, flagRequest|flags)
	m.b = binary.NativeEndian.AppendUint32(m.b, m.seq)
	m.b = append(m.b, 0, 0, 0, 0, family, 0)
	m.b = binary.BigEndian.AppendUint16(m.b, resource)
}

// end ends the message.
func (m *messages) end() { binary.NativeEndian.PutUint32(m.b[m.at:], uint32(len(m.b)-m.at)) }

// of begins a message of nf_tables.
func (m *messages) of(kind, flags uint16) { m.begin(subsystem<<8|kind, flags, familyINet, 0) }

// transaction puts what add adds between the messages that make it one: all of it
// happens, or nothing. Only the last message is acknowledged.
func (m *messages) transaction(add func()) {
	m.begin(msgBegin, 0, 0, subsystem)
	m.end()
	add()
	last := m.b[m.at+6:]
	binary.NativeEndian.PutUint16(last, binary.NativeEndian.Uint16(last)|flagAck)
	m.acked = m.seq
	m.begin(msgEnd, 0, 0, subsystem)
	m.end()
}

// nest begins an attribute of attributes, which unnest ends.
func (m *messages) nest(kind uint16) {
	m.open = append(m.open, len(m.b))
	m.b = binary.NativeEndian.AppendUint16(m.b, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, kind|nested)
}

func (m *messages) unnest() {
	at := m.open[len(m.open)-1]
	m.open = m.open[:len(m.open)-1]
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

func (m *messages) bytes(kind uint16, value []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(attrHeader+len(value)))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *messages) text(kind uint16, s string) { m.bytes(kind, append([]byte(s), 0)) }

func (m *messages) number(kind uint16, n uint32) {
	m.bytes(kind, binary.BigEndian.AppendUint32(nil, n))
}

func (m *messages) long(kind uint16, n uint64) {
	m.bytes(kind, binary.BigEndian.AppendUint64(nil, n))
}

var errShort = errors.New("firewall: netlink message cut short")

// next cuts the first message off what the kernel sent.
func next(b []byte) (kind uint16, seq uint32, body, rest []byte, err error) {
	if len(b) < nlmsgHeader {
		return 0, 0, nil, nil, errShort
	}
	n := binary.NativeEndian.Uint32(b)
	if n < nlmsgHeader || uint64(n) > uint64(len(b)) {
		return 0, 0, nil, nil, errShort
	}
	kind, seq = binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
	return kind, seq, b[nlmsgHeader:n], b[min(int(n+3)&^3, len(b)):], nil
}

// outcome is what the kernel's answers so far say of a transaction.
type outcome struct {
	err error // the first
	ack bool  // of the message with that number
}

// read takes in one datagram of answers; seq is the number of the message that asked for
// an acknowledgement.
func (o *outcome) read(b []byte, seq uint32) {
	for len(b) > 0 {
		kind, of, body, rest, err := next(b)
		if err == nil && kind == msgError && len(body) < 4 {
			err = errShort
		}
		if err != nil {
			o.fail(err)
			return
		}
		b = rest
		if kind != msgError {
			continue
		}
		if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
			o.fail(syscall.Errno(errno))
		} else if of == seq {
			o.ack = true
		}
	}
}

func (o *outcome) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

// attribute finds one in a list of attributes; nil: there is none.
func attribute(b []byte, kind uint16) []byte {
	for len(b) >= attrHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^nested == kind {
			return b[attrHeader:n]
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// The attributes of a counter as an object of its own.
const (
	objData        = 4 // NFTA_OBJ_DATA
	counterPackets = 2 // NFTA_COUNTER_PACKETS
)

// packets reads a counter's message.
func packets(b []byte, seq uint32) (uint64, error) {
	kind, of, body, _, err := next(b)
	switch {
	case err != nil:
		return 0, err
	case kind == msgError && len(body) >= 4:
		return 0, syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
	case of != seq || len(body) < nfgenHeader:
		return 0, errShort
	}
	n := attribute(attribute(body[nfgenHeader:], objData), counterPackets)
	if len(n) != 8 {
		return 0, errShort
	}
	return binary.BigEndian.Uint64(n), nil
}
