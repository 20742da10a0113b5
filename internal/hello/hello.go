package hello

// MaxStream is how many bytes of a stream are looked at. A hello that needs more
// of them is Not one.
const MaxStream = 16 << 10

// Bounds of what a Hello lists.
const (
	MaxALPN   = 8  // protocols; those after them are left out
	MaxALPNID = 32 // bytes of one; a longer one is left out
)

// Kind is the protocol that a hello is of. The zero value is invalid.
type Kind uint8

// The kinds.
const (
	KindTLS  Kind = iota + 1
	KindQUIC      // TLS in QUIC
	KindHTTP      // HTTP/1 in the clear
)

func (k Kind) String() string {
	switch k {
	case KindTLS:
		return "tls"
	case KindQUIC:
		return "quic"
	case KindHTTP:
		return "http"
	}
	return "invalid"
}

// Status is what is known of a stream. The zero value is invalid.
type Status uint8

// The states.
const (
	More Status = iota + 1 // so far it may become a hello
	Done                   // the hello is whole
	Not                    // more bytes will not make it a hello
)

func (s Status) String() string {
	switch s {
	case More:
		return "more"
	case Done:
		return "done"
	case Not:
		return "not"
	}
	return "invalid"
}

// Hello is what a client said first. The zero value is no hello. It shares no
// memory with the bytes it was read from.
type Hello struct {
	Kind Kind
	// Name is the host name that was asked for, in lower case and without the dot at
	// its end; letters, digits, hyphens, underscores and dots only. It is empty when
	// none was, when it was an address, and when BadName.
	Name    string
	BadName bool // a name was asked for that no host can have
	// ECH tells that the hello has an encrypted one inside (RFC 9849). Name is then the
	// outer hello's, which the client's provider chose to hide the real one; or there is
	// only noise inside and Name is real: clients make sure that nobody can tell.
	ECH bool
	// Proxy tells that Name is what a proxy is asked for (HTTP's CONNECT, or a request
	// target with a scheme); the flow's other end may be that proxy.
	Proxy bool
	// ALPN lists application protocols in the client's order, at most MaxALPN of at most
	// MaxALPNID bytes. They are bytes from outside, any bytes: escape them.
	ALPN []string
}

// First reads whichever hello the stream's first byte says it may be.
func First(stream []byte) (Hello, Status) {
	switch {
	case len(stream) == 0:
		return Hello{}, More
	case stream[0] == recordHandshake:
		return TLS(stream)
	case isToken(stream[0]) || stream[0] == '\r' || stream[0] == '\n':
		return HTTP(stream)
	}
	return Hello{}, Not
}
