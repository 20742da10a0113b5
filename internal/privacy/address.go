package privacy

import (
	"crypto/aes"
	"crypto/cipher"
	"net/netip"
)

// scheme is Crypto-PAn (Xu, Fan, Ammar and Moon, "Prefix-Preserving IP Address
// Anonymization", ICNP 2002): whether bit n is flipped is a keyed function of the n
// bits before it, so addresses that share n bits still share n bits, and the whole is a
// permutation.
type scheme struct {
	block cipher.Block
	pad   [16]byte
}

// newScheme takes the key of the reference implementation: a key for AES-128, and
// what becomes the padding.
func newScheme(key [32]byte) scheme {
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic("privacy: " + err.Error()) // 16 bytes are a key
	}
	s := scheme{block: block}
	block.Encrypt(s.pad[:], key[16:])
	return s
}

// permute flips bits of b (4 or 16 bytes) from bit number keep on.
func (s *scheme) permute(b []byte, keep int) {
	in, out, flips := s.pad, [16]byte{}, [16]byte{}
	for n := range len(b) * 8 {
		if n >= keep {
			s.block.Encrypt(out[:], in[:])
			flips[n/8] |= out[0] >> 7 << (7 - n%8)
		}
		bit := byte(0x80) >> (n % 8) // the next prefix is one bit longer
		in[n/8] = in[n/8]&^bit | b[n/8]&bit
	}
	for i := range b {
		b[i] ^= flips[i]
	}
}

// kinds are ranges whose addresses stay within: what an address is for shows in its
// first bits, and a private address that looked like somebody's global one would
// mislead (RFC 6890 and the IANA registries of special-purpose addresses). What is in
// none of them is of a kind of its own: global IPv4, and unassigned IPv6.
var kinds = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // shared by a provider's customers
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), // IPv4 behind NAT64
	netip.MustParsePrefix("2000::/3"),     // global
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// kindOf is the range that a lies in, invalid for none.
func kindOf(a netip.Addr) netip.Prefix {
	for _, k := range kinds {
		if k.Contains(a) {
			return k
		}
	}
	return netip.Prefix{}
}

// Addr returns what stands for a: always the same, never the same for two, of the
// same kind. Two that share 16 bits (IPv6: those of their kind) share as many as before.
// The unspecified, loopback and invalid ones stay; a zone, which is an interface's
// name, goes.
func (m *Mask) Addr(a netip.Addr) netip.Addr {
	a = a.WithZone("")
	if !a.IsValid() || a.IsUnspecified() || a.Unmap().IsLoopback() {
		return a
	}
	if a.Is4In6() {
		return netip.AddrFrom16(m.Addr(a.Unmap()).As16())
	}
	kind := kindOf(a)
	s := &m.six
	if a.Is4() {
		s = &m.four
	}
	// What has no range of its own is permuted until it is out of the others again:
	// as a permutation it gets there, at the latest at a itself.
	for {
		b := a.AsSlice()
		s.permute(b, max(kind.Bits(), 0))
		a, _ = netip.AddrFromSlice(b)
		if kindOf(a) == kind && !a.IsUnspecified() && !a.IsLoopback() {
			return a
		}
	}
}

// Prefix returns what stands for p: the range in which what stands for its addresses
// lies, if it has 16 bits or more.
func (m *Mask) Prefix(p netip.Prefix) netip.Prefix {
	if !p.IsValid() {
		return p
	}
	return netip.PrefixFrom(m.Addr(p.Addr()), p.Bits()).Masked()
}

func (m *Mask) addrPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(m.Addr(a.Addr()), a.Port())
}
