package capture

import (
	"encoding/hex"
	"testing"
)

// FuzzAddresses: any bytes of the kernel's answer give addresses or an error.
func FuzzAddresses(f *testing.F) {
	// RTM_NEWADDR of 127.0.0.1 and NLMSG_DONE, little endian.
	b, err := hex.DecodeString("2800000014000200070000000000000002088000010000000800010" + "07f000001" + "080002007f000001" + "1400000003000200070000000000000000000000")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		l := addrLister{seq: 7}
		addrs, done, err := l.messages(b, nil)
		if len(addrs) > len(b)/8 || err != nil && !done {
			t.Errorf("%d addresses of %d bytes, done %v, %v", len(addrs), len(b), done, err)
		}
	})
}
