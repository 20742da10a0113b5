package quic

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"slices"
)

// Sizes of what protects Initial packets, in bytes.
const (
	keySize = 16 // AES-128, for packets and for headers
	ivSize  = 12
)

// keys open one side's Initial packets. The zero value opens none.
type keys struct {
	known *version
	aead  cipher.AEAD
	iv    [ivSize]byte
	hp    cipher.Block // nil in the zero value
}

func (k *keys) held() bool { return k.hp != nil }

// clientIn is the label of the client's secret, in both versions.
var clientIn = label("client in", sha256.Size)

// label makes what HKDF-Expand-Label hands to HKDF-Expand, without context.
//
//	struct {                                        RFC 8446 section 7.1
//	    uint16 length;
//	    opaque label<7..255> = "tls13 " + Label;
//	    opaque context<0..255> = Context;           empty
//	} HkdfLabel;
func label(name string, size int) string {
	const prefix = "tls13 "
	return string([]byte{byte(size >> 8), byte(size), byte(len(prefix) + len(name))}) + prefix + name + "\x00"
}

// clientKeys derives the keys of a client's Initials from the connection id that it
// chose for the server (RFC 9001 section 5.2):
//
//	initial_secret = HKDF-Extract(initial_salt, client_dst_connection_id)
//	client_initial_secret = HKDF-Expand-Label(initial_secret, "client in", "", 32)
//	key, iv, hp    = HKDF-Expand-Label(client_initial_secret, "quic key" …)
//
// This is what costs: some microseconds and kilobytes.
func clientKeys(v *version, dcid []byte) keys {
	initial, err := hkdf.Extract(sha256.New, dcid, v.salt)
	if err != nil {
		return keys{} // as gcm
	}
	client := expand(initial, clientIn, sha256.Size)
	k := keys{known: v, aead: gcm(expand(client, v.key, keySize))}
	copy(k.iv[:], expand(client, v.iv, ivSize))
	k.hp, err = aes.NewCipher(expand(client, v.hp, keySize))
	if err != nil || k.aead == nil {
		return keys{}
	}
	return k
}

func expand(secret []byte, label string, size int) []byte {
	b, err := hkdf.Expand(sha256.New, secret, label, size)
	if err != nil {
		return nil // as gcm
	}
	return b
}

// scratch is memory to decrypt into. It is reused with every packet.
type scratch struct {
	mask   [aes.BlockSize]byte
	nonce  [ivSize]byte
	header []byte
	plain  []byte
}

// open decrypts an Initial. largest is the largest packet number so far, -1 for none.
// The payload lies in s and ends with its next use; ok is false when the packet was
// not sealed with these keys, or was damaged.
//
//	mask = AES-ECB(hp_key, sample)                  RFC 9001 section 5.4
//	first byte ^= mask[0] & 0x0f
//	packet number ^= mask[1..4], as long as the first byte's last two bits say
//	nonce = iv ^ packet number                      RFC 9001 section 5.3
func (k *keys) open(s *scratch, p *Packet, largest int64) (payload []byte, number int64, ok bool) {
	if !k.held() || k.known != p.known || p.Type != Initial {
		return nil, 0, false
	}
	k.hp.Encrypt(s.mask[:], p.Whole[p.Number+maxNumber:][:sampleSize])
	first := p.Whole[0] ^ s.mask[0]&0x0f
	size := int(first&3) + 1
	body := p.Whole[p.Number+size:]
	s.header = append(s.header[:0], p.Whole[:p.Number+size]...)
	s.header[0] = first
	truncated := int64(0)
	for i := range size {
		s.header[p.Number+i] ^= s.mask[1+i]
		truncated = truncated<<8 | int64(s.header[p.Number+i])
	}
	number = fullNumber(largest, truncated, size*8)
	s.nonce = k.iv
	be.PutUint64(s.nonce[4:], be.Uint64(s.nonce[4:])^uint64(number))
	s.plain = slices.Grow(s.plain[:0], len(body))
	plain, err := k.aead.Open(s.plain, s.nonce[:], body, s.header)
	if err != nil {
		return nil, 0, false
	}
	return plain, number, true
}

// fullNumber is the packet number closest to the next one expected that ends in the
// given bits (RFC 9000 appendix A.3).
func fullNumber(largest, truncated int64, bits int) int64 {
	expected := largest + 1
	window := int64(1) << bits
	candidate := expected&^(window-1) | truncated
	switch {
	case candidate <= expected-window/2 && candidate < 1<<62-window:
		return candidate + window
	case candidate > expected+window/2 && candidate >= window:
		return candidate - window
	}
	return candidate
}

// checkRetry reports whether a Retry answers an Initial with the given id: only who
// saw that can make the tag (RFC 9001 section 5.8).
//
//	Retry Pseudo-Packet {
//	  ODCID Length (8), Original Destination Connection ID (0..160),
//	  the Retry packet without its tag,
//	}
func checkRetry(s *scratch, p *Packet, odcid []byte) bool {
	if p.known.retry == nil {
		return false
	}
	end := len(p.Whole) - tagSize
	s.header = append(s.header[:0], byte(len(odcid)))
	s.header = append(s.header, odcid...)
	s.header = append(s.header, p.Whole[:end]...)
	_, err := p.known.retry.Open(s.plain[:0], p.known.nonce, p.Whole[end:], s.header)
	return err == nil
}
