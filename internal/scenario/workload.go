package scenario

import "time"

// Traffic is the shape of an application's flow. The zero value is invalid.
type Traffic uint8

// The shapes of flows, named from the client that opens them.
const (
	Download        Traffic = iota + 1 // the server sends Bytes as fast as it may
	Upload                             // the client sends Bytes as fast as it may
	SlowReader                         // Download read slowly through a 32 KiB receive buffer
	RequestResponse                    // a request and a response of Bytes each, Every so often
	OneByte                            // one-byte messages, echoed, Every so often
	Idle                               // one exchange, then silence
)

// Workload is one application flow between two hosts, over real or simulated TCP.
type Workload struct {
	Client, Server string // names of hosts
	Port           uint16 // the server's
	IPv6           bool
	Traffic        Traffic
	Bytes          int64         // of the whole transfer, or of each message
	Every          time.Duration // between two requests or messages
	Duration       time.Duration // for how long; 0: until Bytes are through
	NoSACK         bool          // TCP options that both hosts do without
	NoTimestamps   bool
	NoWindowScale  bool
}
