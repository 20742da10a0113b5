package firewall

import "time"

const (
	// Lifetime is how long the rule knows a probe. An error that comes later passes.
	Lifetime = 30 * time.Second
	// Capacity is how many probes it knows at once: as many as leave in that time at
	// the default rate.
	Capacity = 32768

	// together bounds how many are added in one transaction.
	together = 256
)
