package trace

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// PathID names a path: the first 16 hex digits of SHA-256 over "ttl=addr" joined
// by commas, from TTL 1 to last, with the lowest answering address of each TTL
// and "*" for a silent one. Replies with SharedFrom do not count. hops are ordered by TTL and need not be complete.
func PathID(hops []Hop, last int) string {
	lowest := map[int]netip.Addr{}
	for _, h := range hops {
		for _, r := range h.Replies {
			if a, ok := lowest[h.TTL]; r.SharedFrom == "" && (!ok || r.Addr.Less(a)) {
				lowest[h.TTL] = r.Addr
			}
		}
	}
	parts := make([]string, 0, max(last, 0))
	for ttl := 1; ttl <= last; ttl++ {
		addr := "*"
		if a, ok := lowest[ttl]; ok {
			addr = a.String()
		}
		parts = append(parts, strconv.Itoa(ttl)+"="+addr)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ",")))
	return hex.EncodeToString(sum[:8])
}
