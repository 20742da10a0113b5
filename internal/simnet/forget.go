package simnet

// Forget lets go of flows and connections that have ended and of all that Truth knows, so that a
// long run's memory shows what others keep.
func (n *Net) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.truth.trips)
	clear(n.truth.probes)
	clear(n.truth.byFlow) // the ways stay: packets under way name them
	for len(n.flows) > 0 && n.flows[0].isDone {
		n.flows[0] = nil
		n.flows = n.flows[1:]
		n.forgotten++
	}
	now := n.clock()
	for _, nd := range n.nodes {
		if nd.stack == nil {
			continue
		}
		for _, c := range nd.stack.conns {
			if c.state == timeWait && now >= c.gone {
				c.forget()
			}
		}
	}
}
