package sibling

import "time"

const (
	paceBurst = 6  // what Linux lets a target have at once (net.ipv4.icmp_ratelimit)
	paceStart = 20 // probes per second and TTL
	paceFloor = 1
)

// pace bounds the probes of one TTL: routers limit their ICMP errors, and all siblings
// ask the same ones. It rises while all are answered and falls with each miss of a TTL
// that answers others.
type pace struct {
	tokens, rate, ceiling float64
	filled                time.Time
}

func newPace(now time.Time, ceiling float64) *pace {
	return &pace{tokens: paceBurst, rate: min(paceStart, ceiling), ceiling: ceiling, filled: now}
}

// take spends a token, or returns how long until there is one.
func (p *pace) take(now time.Time) (wait time.Duration) {
	p.tokens = min(paceBurst, p.tokens+max(now.Sub(p.filled), 0).Seconds()*p.rate)
	p.filled = now
	if p.tokens >= 1 {
		p.tokens--
		return 0
	}
	return time.Duration((1-p.tokens)/p.rate*float64(time.Second)) + 1
}

func (p *pace) answered() { p.rate = min(p.ceiling, p.rate*1.1) }

func (p *pace) missed() {
	p.rate = max(paceFloor, p.rate/2)
	p.tokens = min(p.tokens, 0)
}
