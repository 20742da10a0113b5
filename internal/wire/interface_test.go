package wire

import (
	"net/netip"
	"slices"
	"testing"
)

func TestInterfaceInfo(t *testing.T) {
	const mpls = "0008 0101 03e81101"
	for name, test := range map[string]struct {
		bytes string
		want  []InterfaceInfo
	}{
		"all of it": {
			"0020 020f 00000007 0001 0000 c0000263 0c 67652d302f302f31 000000 00002328",
			[]InterfaceInfo{{Index: 7, Addr: netip.MustParseAddr("192.0.2.99"), Name: "ge-0/0/1", MTU: 9000}},
		},
		"role, IPv6": {
			"0018 0284 0002 0000 20010db8000000000000000000000063",
			[]InterfaceInfo{{Role: 2, Addr: netip.MustParseAddr("2001:db8::63")}},
		},
		"behind a label": {mpls + "0008 02c8 00000003", []InterfaceInfo{{Role: 3, Index: 3}}},
		"two":            {"0008 0208 00000001 0008 0288 00000002", []InterfaceInfo{{Index: 1}, {Role: 2, Index: 2}}},
		"no more than there are roles": {
			"0008 0208 00000001 0008 0208 00000002 0008 0208 00000003 0008 0208 00000004 0008 0208 00000005",
			[]InterfaceInfo{{Index: 1}, {Index: 2}, {Index: 3}, {Index: 4}},
		},
		"says nothing":          {"0004 0200", nil},
		"index cut short":       {"0006 0208 0000", nil},
		"family unknown":        {"000c 0204 0003 0000 c0000263", nil},
		"address cut short":     {"000a 0204 0001 0000 c000", nil},
		"name of no length":     {"0008 0202 00676500", nil},
		"name beyond the end":   {"0008 0202 08676500", nil},
		"object beyond the end": {"00ff 0208 00000001", nil},
	} {
		if got := AppendInterfaceInfo(nil, unhex("20000000"+test.bytes)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// The checksum in a quote tells whether what it counts was put back alone.
func TestTCPChecksumFits(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := probe(a4, b4)
		header := 20
		if v6 {
			p, header = probe(a6, b6), 40
		}
		whole := p.AppendTo(nil)
		look := func(b []byte) (bool, bool) {
			var q Quote
			if err := q.Decode(b); err != nil {
				t.Fatal(err)
			}
			return q.TCPChecksumFits()
		}
		if fits, known := look(append(slices.Clone(whole), make([]byte, 40)...)); !fits || !known { // padded (RFC 4884)
			t.Errorf("IPv6 %t: as it was: %t, %t", v6, fits, known)
		}
		changed := slices.Clone(whole)
		changed[header-1]++ // the destination
		if fits, known := look(changed); fits || !known {
			t.Errorf("IPv6 %t: changed: %t, %t", v6, fits, known)
		}
		unfilled := slices.Clone(whole)
		unfilled[header+16], unfilled[header+17] = 0, 0
		if _, known := look(unfilled); known {
			t.Errorf("IPv6 %t: known of a checksum that is not there", v6)
		}
		for _, short := range []int{8, 20, len(whole) - header - 1} {
			if _, known := look(whole[:header+short]); known {
				t.Errorf("IPv6 %t: known of %d bytes", v6, short)
			}
		}
	}
}
