package privacy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"servicetraceroute/trace"
)

// Key is the secret of a Mask. Two with the same key mask alike; whoever has it can
// undo the addresses, and guess at names.
type Key [96]byte

// NewKey returns a random key.
func NewKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// Mask replaces what identifies people. Its methods may be called at the same time,
// except Event.
type Mask struct {
	four, six scheme
	names     []byte

	paths map[string]string // what stands for the path of a trace, by the trace's id
	order []string          // those ids, the oldest first
}

// maxPaths bounds the traces whose path_id can still be named by a change.
const maxPaths = 4096

// New returns a mask.
func New(key Key) *Mask {
	return &Mask{
		four: newScheme([32]byte(key[:32])), six: newScheme([32]byte(key[32:64])), names: key[64:],
		paths: map[string]string{},
	}
}

// Name returns what stands for a name: "name-" and twelve hex digits. An empty one
// stays.
func (m *Mask) Name(name string) string {
	if name == "" {
		return ""
	}
	sum := hmac.New(sha256.New, m.names)
	_, _ = io.WriteString(sum, strings.ToLower(name))
	return "name-" + hex.EncodeToString(sum.Sum(nil)[:6])
}

// Value returns what stands for a single word: an address, a prefix, either with a
// port, or a name.
func (m *Mask) Value(word string) string {
	if a, err := netip.ParseAddr(word); err == nil {
		return m.Addr(a).String()
	}
	if a, err := netip.ParseAddrPort(word); err == nil {
		return m.addrPort(a).String()
	}
	if p, err := netip.ParsePrefix(word); err == nil {
		return m.Prefix(p).String()
	}
	if host, port, err := net.SplitHostPort(word); err == nil && host != "" && isNumber(port) {
		return net.JoinHostPort(m.Value(host), port)
	}
	return m.Name(word)
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// plainWord is a name that a user or the catalogue gives to a service, and no
// host's.
var plainWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9 _+-]*$`)

// service masks why a flow was selected. Of its name only a word that was chosen for
// a service stays: not one that is the value itself, nor that of a command.
func (m *Mask) service(s *trace.Service) *trace.Service {
	if s == nil {
		return nil
	}
	masked := &trace.Service{Name: s.Name, By: s.By, Value: m.Value(s.Value), ECH: s.ECH}
	if s.By == trace.ByPort {
		masked.Value = s.Value
	}
	switch s.By {
	case trace.ByProcess, trace.ByCgroup, trace.ByRun, trace.ByDial, trace.ByConnection, trace.ByExpr:
		masked.Name = m.Value(s.Name)
	case trace.ByPort:
		if !isPorts(s.Name) && !plainWord.MatchString(s.Name) {
			masked.Name = m.Value(s.Name)
		}
	default:
		if s.Name == s.Value || !plainWord.MatchString(s.Name) {
			masked.Name = m.Value(s.Name)
		}
	}
	return masked
}

// isPorts reports whether s is a port or a range of them.
func isPorts(s string) bool {
	first, last, ranged := strings.Cut(s, "-")
	return isNumber(first) && (!ranged || isNumber(last))
}

var (
	// token may hold an address.
	token = regexp.MustCompile(`[0-9A-Za-z_:.]*[.:][0-9A-Za-z_:.]*`)
	quad  = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+`)
	// nameLike is a host's name of two labels or more, or a file's.
	nameLike = regexp.MustCompile(`(?:[A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]+`)
)

// Text masks the addresses and the names with dots in a text.
func (m *Mask) Text(text string) string {
	// Names first: they may hold what looks like an address.
	var b strings.Builder
	rest := 0
	for _, at := range nameLike.FindAllStringIndex(text, -1) {
		b.WriteString(token.ReplaceAllStringFunc(text[rest:at[0]], m.token))
		b.WriteString(m.Name(text[at[0]:at[1]]))
		rest = at[1]
	}
	b.WriteString(token.ReplaceAllStringFunc(text[rest:], m.token))
	return b.String()
}

// maxAddress is the longest address as text, with a port.
const maxAddress = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") + len(":65535")

// token masks the address in a run of characters of which addresses are made, which
// may have a word and a colon before it and punctuation around it.
func (m *Mask) token(run string) string {
	word := strings.Trim(run, ":.")
	if strings.HasSuffix(run, "::") || strings.HasPrefix(run, "::") {
		word = strings.Trim(run, ".")
	}
	start := strings.Index(run, word)
	before, after := run[:start], run[start+len(word):]
	for from := max(0, len(word)-maxAddress); from < len(word); {
		if a, err := netip.ParseAddr(word[from:]); err == nil {
			return before + m.quads(word[:from]) + m.Addr(a).String() + after
		}
		next := strings.IndexByte(word[from:], ':')
		if next < 0 {
			break
		}
		from += next + 1
	}
	return before + m.quads(word) + after
}

// quads masks IPv4 addresses, whatever stands around them.
func (m *Mask) quads(text string) string {
	return quad.ReplaceAllStringFunc(text, func(q string) string {
		if a, err := netip.ParseAddr(q); err == nil {
			return m.Addr(a).String()
		}
		return q
	})
}

// Log returns a writer that masks the text of each Write, which should be a whole
// line, on its way to w.
func (m *Mask) Log(w io.Writer) io.Writer { return &log{m, w} }

type log struct {
	mask *Mask
	w    io.Writer
}

// Write implements io.Writer.
func (l *log) Write(b []byte) (int, error) {
	if _, err := io.WriteString(l.w, l.mask.Text(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
