package quic

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/tls"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/hello"
)

var (
	start   = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	outside = netip.MustParseAddr("192.0.2.7")
	firstID = []byte("\x83\x94\xc8\xf0\x3e\x51\x57\x08") // of RFC 9001 appendix A
)

// vector reads bytes that an RFC's appendix shows.
func vectorOf(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clientHello returns the hello that crypto/tls's client makes for QUIC.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	cfg.MinVersion = tls.VersionTLS13
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: cfg})
	c.SetTransportParameters([]byte{1, 2, 0x67, 0x10})
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
		if e.Kind == tls.QUICWriteData {
			return bytes.Clone(e.Data)
		}
	}
	t.Fatal("crypto/tls wrote nothing")
	return nil
}

// initial is an Initial to be made. The zero value is one of version 1 with a packet
// number of one byte, empty.
type initial struct {
	version    uint32 // 0: 1
	keyID      []byte // that the keys are derived from; nil: firstID
	dcid, scid []byte // nil: keyID, none
	token      []byte
	number     int64
	size       int // bytes of the number; 0: 1
	payload    []byte
	first      byte // is xored into the first byte
}

// seal makes a protected packet, the other way round than package quic opens it
// (RFC 9001 sections 5.3 and 5.4).
func (i initial) seal() []byte {
	if i.version == 0 {
		i.version = Version1
	}
	if i.keyID == nil {
		i.keyID = firstID
	}
	if i.dcid == nil {
		i.dcid = i.keyID
	}
	i.size = max(i.size, 1)
	i.payload = append(bytes.Clone(i.payload), make([]byte, max(0, maxNumber-i.size-len(i.payload)))...)
	v := versionOf(i.version)
	typ := byte(bytes.IndexByte([]byte{byte(v.types[0]), byte(v.types[1]), byte(v.types[2]), byte(v.types[3])}, byte(Initial)))
	b := []byte{(0xc0 | typ<<4 | byte(i.size-1)) ^ i.first}
	b = be.AppendUint32(b, i.version)
	b = append(append(b, byte(len(i.dcid))), i.dcid...)
	b = append(append(b, byte(len(i.scid))), i.scid...)
	b = append(appendVarint(b, uint64(len(i.token))), i.token...)
	b = appendVarint(b, uint64(i.size+len(i.payload)+tagSize))
	at := len(b)
	for n := i.size - 1; n >= 0; n-- {
		b = append(b, byte(i.number>>(8*n)))
	}
	k := clientKeys(v, i.keyID)
	nonce := k.iv
	be.PutUint64(nonce[4:], be.Uint64(nonce[4:])^uint64(i.number))
	b = k.aead.Seal(b, nonce[:], i.payload, b)
	var mask [aes.BlockSize]byte
	k.hp.Encrypt(mask[:], b[at+maxNumber:][:sampleSize])
	b[0] ^= mask[0] & 0x0f
	for n := range i.size {
		b[at+n] ^= mask[1+n]
	}
	return b
}

// appendVarint writes an integer below 2^30 as short as it goes.
func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return be.AppendUint16(b, uint16(v)|0x4000)
	}
	return be.AppendUint32(b, uint32(v)|0x80000000)
}

// cryptoFrame is a piece of a CRYPTO stream.
func cryptoFrame(offset int, data []byte) []byte {
	b := appendVarint([]byte{frameCrypto}, uint64(offset))
	return append(appendVarint(b, uint64(len(data))), data...)
}

// datagram joins packets and fills up to the least size that a client may send.
func datagram(packets ...[]byte) []byte {
	b := bytes.Join(packets, nil)
	return append(b, make([]byte, max(0, MinDatagram-len(b)))...)
}

// inOne is a datagram with a whole hello.
func inOne(msg []byte) []byte {
	return datagram(initial{payload: cryptoFrame(0, msg)}.seal())
}

// retryPacket makes a Retry with a right tag (RFC 9001 section 5.8).
func retryPacket(v *version, odcid, dcid, scid, token []byte) []byte {
	typ := byte(3)
	if v.number == Version2 {
		typ = 0
	}
	b := be.AppendUint32([]byte{0xc0 | typ<<4}, v.number)
	b = append(append(b, byte(len(dcid))), dcid...)
	b = append(append(b, byte(len(scid))), scid...)
	b = append(b, token...)
	pseudo := append(append([]byte{byte(len(odcid))}, odcid...), b...)
	return append(b, v.retry.Seal(nil, v.nonce, nil, pseudo)...)
}

// newConn returns a Conn of a foreign client with ample allowance.
func newConn() *Conn {
	return NewDecoder(Limits{Rate: 1e6, Burst: 1e6, SourceRate: 1e6, SourceBurst: 1e6}).NewConn(outside)
}

// want checks a Conn's answer. An empty name stands for no hello.
func want(t testing.TB, h hello.Hello, s, status hello.Status, name string) {
	t.Helper()
	if s != status || h.Name != name || (h.Kind == hello.KindQUIC) != (s == hello.Done) {
		t.Errorf("%v, %+v; want %v, %q", s, h, status, name)
	}
}
