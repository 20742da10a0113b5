package hello

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// dialed returns the first record that crypto/tls's client sends.
func dialed(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = tls.Client(theirs, cfg).Handshake() // fails when we hang up
	}()
	defer func() {
		_ = ours.Close()
		<-ended
	}()
	b := make([]byte, recordHeader)
	if _, err := io.ReadFull(ours, b); err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, int(b[3])<<8|int(b[4]))...)
	if _, err := io.ReadFull(ours, b[recordHeader:]); err != nil {
		t.Fatal(err)
	}
	return b
}

// served returns what crypto/tls's server makes of a stream; nil: it refuses it.
func served(t testing.TB, stream []byte) *tls.ClientHelloInfo {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_, _ = ours.Write(stream)
		_, _ = io.Copy(io.Discard, ours)
	}()
	var info *tls.ClientHelloInfo
	enough := errors.New("enough")
	_ = tls.Server(theirs, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		info = i
		return nil, enough
	}}).Handshake()
	_ = theirs.Close()
	_ = ours.Close()
	return info
}

// echConfigs returns a list of one ECHConfig with a fresh key (RFC 9849 section 4).
func echConfigs(t testing.TB, public string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	contents := []byte{7, 0, 0x20} // config id, DHKEM(X25519, HKDF-SHA256)
	contents = append(contents, vec16(key.PublicKey().Bytes())...)
	contents = append(contents, vec16([]byte{0, 1, 0, 1})...) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 32)                           // maximum length of a name
	contents = append(contents, vec8([]byte(public))...)
	contents = append(contents, 0, 0) // no extensions
	return vec16(append([]byte{0xfe, 0x0d}, vec16(contents)...))
}

func vec8(b []byte) []byte  { return append([]byte{byte(len(b))}, b...) }
func vec16(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }

var longName = strings.Repeat(strings.Repeat("n", 49)+".", 5) + "xyz"

// configs are clients of crypto/tls, and what their hellos say.
func configs(t testing.TB) map[string]struct {
	cfg  *tls.Config
	want Hello
} {
	return map[string]struct {
		cfg  *tls.Config
		want Hello
	}{
		"post-quantum key share": {
			&tls.Config{ServerName: "www.example.com"},
			Hello{Kind: KindTLS, Name: "www.example.com"},
		},
		"classic key share": {
			&tls.Config{ServerName: "www.example.com", CurvePreferences: []tls.CurveID{tls.X25519}},
			Hello{Kind: KindTLS, Name: "www.example.com"},
		},
		"TLS 1.2": {
			&tls.Config{ServerName: "old.example.com", MaxVersion: tls.VersionTLS12},
			Hello{Kind: KindTLS, Name: "old.example.com"},
		},
		"protocols": {
			&tls.Config{ServerName: "WWW.Example.com", NextProtos: []string{"h2", "http/1.1", "\x00\xff"}},
			Hello{Kind: KindTLS, Name: "www.example.com", ALPN: []string{"h2", "http/1.1", "\x00\xff"}},
		},
		"no name": {
			&tls.Config{InsecureSkipVerify: true},
			Hello{Kind: KindTLS},
		},
		"long name": {
			&tls.Config{ServerName: longName},
			Hello{Kind: KindTLS, Name: longName},
		},
		"encrypted hello": {
			&tls.Config{
				ServerName: "secret.example.com", MinVersion: tls.VersionTLS13,
				EncryptedClientHelloConfigList: echConfigs(t, "public.example.net"),
			},
			Hello{Kind: KindTLS, Name: "public.example.net", ECH: true},
		},
	}
}

// rerecorded spreads the handshake bytes of a stream's first record over records of
// at most n bytes.
func rerecorded(stream []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(stream[recordHeader:], n) {
		out = append(append(out, stream[:3]...), vec16(part)...)
	}
	return out
}

func TestAgreesWithCryptoTLS(t *testing.T) {
	for name, test := range configs(t) {
		t.Run(name, func(t *testing.T) {
			stream := dialed(t, test.cfg)
			for _, first := range []func([]byte) (Hello, Status){TLS, First} {
				if h, s := first(stream); s != Done || !reflect.DeepEqual(h, test.want) {
					t.Errorf("%v, %+v", s, h)
				}
			}
			info := served(t, stream)
			if info == nil || info.ServerName != test.want.Name && !strings.EqualFold(info.ServerName, test.want.Name) ||
				!slices.Equal(info.SupportedProtos, test.want.ALPN) || slices.Contains(info.Extensions, extECH) != test.want.ECH {
				t.Errorf("crypto/tls reads %+v", info)
			}
			inQUIC := test.want
			inQUIC.Kind = KindQUIC
			if h, s := Handshake(stream[recordHeader:]); s != Done || !reflect.DeepEqual(h, inQUIC) {
				t.Errorf("without record: %v, %+v", s, h)
			}
		})
	}
}

// However a stream is cut into segments and records, it says the same, and never
// too early.
func TestPiecesOfAHello(t *testing.T) {
	for name, test := range configs(t) {
		t.Run(name, func(t *testing.T) {
			whole := dialed(t, test.cfg)
			for _, size := range []int{1, 2, 3, 4, 5, 100, len(whole) - recordHeader - 1, len(whole)} {
				stream := rerecorded(whole, size)
				for n := range stream {
					if h, s := First(stream[:n]); s != More || !reflect.DeepEqual(h, Hello{}) {
						t.Fatalf("records of %d: %v after %d of %d bytes", size, s, n, len(stream))
					}
				}
				more := append(slices.Clone(stream), "what follows"...)
				for _, b := range [][]byte{stream, more} {
					if h, s := First(b); s != Done || !reflect.DeepEqual(h, test.want) {
						t.Errorf("records of %d: %v, %+v", size, s, h)
					}
				}
			}
		})
	}
}

// made is a ClientHello in a record, made of extensions.
func made(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vec8(make([]byte, 32))...)
	body = append(body, vec16([]byte{0x5a, 0x5a, 0x13, 1})...)
	body = append(body, vec8([]byte{0})...)
	body = append(body, vec16(bytes.Join(extensions, nil))...)
	msg := append([]byte{typeClientHello, 0}, vec16(body)...)
	return append([]byte{recordHandshake, 3, 1}, vec16(msg)...)
}

func extension(typ uint16, data []byte) []byte {
	return append([]byte{byte(typ >> 8), byte(typ)}, vec16(data)...)
}

func sni(name string) []byte {
	return extension(extServerName, vec16(append([]byte{0}, vec16([]byte(name))...)))
}

func alpn(ids ...string) []byte {
	var list []byte
	for _, id := range ids {
		list = append(list, vec8([]byte(id))...)
	}
	return extension(extALPN, vec16(list))
}

func TestExtensions(t *testing.T) {
	good := Hello{Kind: KindTLS, Name: "a.example"}
	with := func(change func(*Hello)) Hello {
		h := good
		change(&h)
		return h
	}
	many := [][]byte{sni("a.example")}
	for i := range uint16(maxExtensions - 1) {
		many = append(many, extension(0x1000+i, nil))
	}
	tests := []struct {
		name   string
		stream []byte
		status Status
		want   Hello
	}{
		{"made-up values as a browser's", made(extension(0x1a1a, nil), sni("a.example"), extension(0xcaca, []byte{0}), alpn("\x2a\x2a", "h2")), Done,
			with(func(h *Hello) { h.ALPN = []string{"h2"} })},
		{"padding and a ticket", made(sni("a.example"), extension(35, make([]byte, 200)), extension(21, make([]byte, 400))), Done, good},
		{"name twice", made(sni("a.example"), sni("b.example")), Not, Hello{}},
		{"anything twice", made(sni("a.example"), extension(43, nil), extension(43, nil)), Not, Hello{}},
		{"made-up value twice", made(extension(0x1a1a, nil), sni("a.example"), extension(0x1a1a, nil)), Not, Hello{}},
		{"as many as are looked at", made(many...), Done, good},
		{"more than that", made(append(many, extension(0x2000, nil))...), Not, Hello{}},
		{"empty server_name", made(extension(extServerName, nil)), Not, Hello{}},
		{"empty list of names", made(extension(extServerName, []byte{0, 0})), Not, Hello{}},
		{"empty name", made(sni("")), Not, Hello{}},
		{"bytes after the list", made(extension(extServerName, append(vec16([]byte{0, 0, 1, 'a'}), 1))), Not, Hello{}},
		{"two names in the list", made(extension(extServerName, vec16([]byte{0, 0, 1, 'a', 0, 0, 1, 'b'}))), Not, Hello{}},
		{"name of another type before", made(extension(extServerName, vec16([]byte{9, 0, 1, 'x', 0, 0, 1, 'a'}))), Done,
			with(func(h *Hello) { h.Name = "a" })},
		{"dot at the end", made(sni("A.Example.")), Done, good},
		{"no host's name", made(sni("a b")), Done, Hello{Kind: KindTLS, BadName: true}},
		{"an address", made(sni("192.0.2.1")), Done, Hello{Kind: KindTLS, BadName: true}},
		{"encrypted hello, outer", made(sni("a.example"), extension(extECH, []byte{0, 0, 1})), Done, with(func(h *Hello) { h.ECH = true })},
		{"encrypted hello, inner", made(sni("a.example"), extension(extECH, []byte{1})), Done, good},
		{"encrypted hello of nothing", made(sni("a.example"), extension(extECH, nil)), Not, Hello{}},
		{"empty list of protocols", made(alpn()), Not, Hello{}},
		{"empty protocol", made(alpn("h2", "")), Not, Hello{}},
		{"more protocols than are kept", made(sni("a.example"), alpn(strings.Repeat("p", MaxALPNID+1), "1", "2", "3", "4", "5", "6", "7", "8", "9")), Done,
			with(func(h *Hello) { h.ALPN = []string{"1", "2", "3", "4", "5", "6", "7", "8"} })},
		{"extension cut short", made(sni("a.example"), []byte{0, 1, 0}), Not, Hello{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, s := TLS(test.stream)
			if s != test.status || !reflect.DeepEqual(h, test.want) {
				t.Errorf("%v, %+v", s, h)
			}
		})
	}
}

func TestNotTLS(t *testing.T) {
	good := made(sni("a.example"))
	change := func(at int, to byte) []byte {
		b := slices.Clone(good)
		b[at] = to
		return b
	}
	const session = recordHeader + handshakeHeader + 34
	tests := []struct {
		name   string
		stream []byte
		after  int // bytes after which it is known; 0: all
	}{
		{"SSL 2.0 hello", []byte{0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10}, 1},
		{"alert", change(0, 21), 1},
		{"version", change(1, 2), 2},
		{"record of nothing", append([]byte{recordHandshake, 3, 1, 0, 0}, good...), 5},
		{"record too long", change(3, 0x41), 5},
		{"server's hello", change(5, 2), 6},
		{"message of more than 64 kB", change(6, 1), 7},
		{"message of more than is looked at", change(7, 0x40), 9},
		{"version of the hello", change(9, 2), 0},
		{"long session id", change(session, 33), 0},
		{"no cipher suites", change(session+34, 0), 0},
		{"other record between", append(rerecorded(good, 40)[:45], 23, 3, 3, 0, 1, 0), 46},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			after := test.after
			if after == 0 {
				after = len(test.stream)
			}
			if _, s := TLS(test.stream[:after]); s != Not {
				t.Errorf("%v after %d bytes", s, after)
			}
			if _, s := TLS(test.stream[:after-1]); s != More {
				t.Errorf("%v one byte before", s)
			}
		})
	}
}

// A hello is waited for up to the limit and no further.
func TestLimit(t *testing.T) {
	pad := MaxStream - len(made(sni("a.example"), extension(21, nil)))
	whole := made(sni("a.example"), extension(21, make([]byte, pad)))
	if h, s := TLS(whole); s != Done || h.Name != "a.example" {
		t.Errorf("hello of %d bytes: %v", len(whole), s)
	}
	over := made(sni("a.example"), extension(21, make([]byte, pad+1)))
	if _, s := TLS(over[:100]); s != Not {
		t.Errorf("hello of %d bytes: %v", len(over), s)
	}
	spread := rerecorded(whole, 100)
	if _, s := TLS(spread[:MaxStream-1]); s != More {
		t.Errorf("before the limit: %v", s)
	}
	if _, s := TLS(spread[:MaxStream]); s != Not {
		t.Errorf("at the limit: %v", s)
	}
	if _, s := Handshake(whole[recordHeader:]); s != Done {
		t.Errorf("without records: %v", s)
	}
	if _, s := Handshake(over[recordHeader:]); s != Not {
		t.Errorf("without records: %v", s)
	}
}
