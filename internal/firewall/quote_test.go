package firewall

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"servicetraceroute/internal/wire"
)

// The keys are what the rules load from an error, see TestDrops.
func TestKeys(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:258"), netip.MustParseAddrPort("[2001:db8::1]:258")
	to4, to6 := netip.MustParseAddrPort("203.0.113.7:443"), netip.MustParseAddrPort("[2001:db8::7]:443")
	payload := []byte{5, 1, 2, 3, 4, 5, 6, 7, 8}
	for name, test := range map[string]struct {
		probe                      []byte
		quotes4, quotes6, payloads string
	}{
		"TCP, IPv4": {
			(&wire.TCPProbe{Src: v4, Dst: to4, ID: 0xabcd, Seq: 0x11223344}).AppendTo(nil),
			"cb007107" + "0102" + "01bb" + "11223344" + "abcd0000" + "cb007107" + "0102" + "01bb" + "11223344" + "cdab0000", "", "",
		},
		"TCP, IPv6": {
			(&wire.TCPProbe{Src: v6, Dst: to6, Seq: 0x11223344}).AppendTo(nil),
			"", "20010db8000000000000000000000007" + "0102" + "01bb" + "11223344", "",
		},
		"UDP, IPv4": {
			(&wire.UDPProbe{Src: v4, Dst: to4, ID: 0xabcd, Payload: payload}).AppendTo(nil),
			"cb007107" + "0102" + "01bb" + "0011" + "0000" + "abcd0000" + "cb007107" + "0102" + "01bb" + "0011" + "0000" + "cdab0000", "",
			"050102030405060708",
		},
		"UDP, IPv6": {(&wire.UDPProbe{Src: v6, Dst: to6, Payload: payload}).AppendTo(nil), "", "", "050102030405060708"},
	} {
		var k keys
		if err := k.add(test.probe); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := hex.EncodeToString(k.quotes4)
		if name == "UDP, IPv4" { // the checksum
			copy(k.quotes4[10:12], []byte{0, 0})
			copy(k.quotes4[quote4Len+10:], []byte{0, 0})
			if !bytes.Equal(test.probe[26:28], mustHex(t, got[20:24])) {
				t.Errorf("%s: checksum of %s", name, got)
			}
			got = hex.EncodeToString(k.quotes4)
		}
		if got != test.quotes4 || hex.EncodeToString(k.quotes6) != test.quotes6 || hex.EncodeToString(k.payloads) != test.payloads {
			t.Errorf("%s: %s %x %x", name, got, k.quotes6, k.payloads)
		}
	}
}

func mustHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
