package quic

import (
	"crypto/aes"
	"crypto/cipher"
)

// Versions that are read, and the one that marks a Version Negotiation packet.
const (
	Version1    = 0x00000001 // RFC 9000
	Version2    = 0x6b3343cf // RFC 9369
	negotiation = 0          // RFC 9000 section 17.2.1
)

// version is what differs between the versions.
type version struct {
	number uint32
	types  [4]Type // by the packet type's two bits
	salt   []byte  // of the Initial secret
	key    string  // HkdfLabels
	iv     string
	hp     string
	retry  cipher.AEAD // of the Retry packets' tag; the nonce is always the same
	nonce  []byte
}

// versions: RFC 9000 section 17.2, RFC 9001 sections 5.2 and 5.8; RFC 9369 section 3.
var versions = [...]version{
	{
		number: Version1,
		types:  [4]Type{Initial, ZeroRTT, Handshake, Retry},
		salt:   []byte("\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a"),
		key:    label("quic key", keySize),
		iv:     label("quic iv", ivSize),
		hp:     label("quic hp", keySize),
		retry:  gcm([]byte("\xbe\x0c\x69\x0b\x9f\x66\x57\x5a\x1d\x76\x6b\x54\xe3\x68\xc8\x4e")),
		nonce:  []byte("\x46\x15\x99\xd3\x5d\x63\x2b\xf2\x23\x98\x25\xbb"),
	},
	{
		number: Version2,
		types:  [4]Type{Retry, Initial, ZeroRTT, Handshake},
		salt:   []byte("\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9"),
		key:    label("quicv2 key", keySize),
		iv:     label("quicv2 iv", ivSize),
		hp:     label("quicv2 hp", keySize),
		retry:  gcm([]byte("\x8f\xb4\xb0\x1b\x56\xac\x48\xe2\x60\xfb\xcb\xce\xad\x7c\xcc\x92")),
		nonce:  []byte("\xd8\x69\x69\xbc\x2d\x7c\x6d\x99\x90\xef\xb0\x4a"),
	},
}

// versionOf returns nil for a version that is not read.
func versionOf(number uint32) *version {
	for i := range versions {
		if versions[i].number == number {
			return &versions[i]
		}
	}
	return nil
}

// isReserved reports whether a client that sends this version wants to be told which
// ones the server knows (RFC 9000 section 15).
func isReserved(number uint32) bool { return number&0x0f0f0f0f == 0x0a0a0a0a }

// gcm returns nil where the program runs in a FIPS mode that forbids such keys: then
// nothing can be read, and nothing breaks.
func gcm(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	return aead
}
