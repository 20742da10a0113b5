//go:build linux

package observe

import (
	"testing"
	"time"
)

func BenchmarkRecorder(b *testing.B) {
	r := newRecorder(Config{}, nil)
	p := tcpPacket(64, 0, 1448)[:120]
	for i := range b.N {
		p[26], p[25] = byte(i), byte(i>>8)
		r.add(time.Unix(1, 0), "eth0", i&1 == 0, p)
		if i&0xfffff == 0 {
			r.clear()
		}
	}
}
