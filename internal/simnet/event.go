package simnet

// event is something that happens at a time: a packet arrives, or a function runs.
type event struct {
	at  int64  // nanoseconds since the Net was made
	seq uint64 // in the order of making: the tie-break that keeps runs equal
	way *way   // p comes to its end
	p   *packet
	run func()
}

func (e *event) before(f *event) bool {
	return e.at < f.at || e.at == f.at && e.seq < f.seq
}

// heap is a binary heap of events. container/heap would box each of them.
type heap []event

func (h *heap) push(e event) {
	s := append(*h, e)
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&s[up]) {
			break
		}
		s[i] = s[up]
		i = up
	}
	s[i] = e
	*h = s
}

func (h *heap) pop() event {
	s := *h
	first, last := s[0], s[len(s)-1]
	n := len(s) - 1
	s[n] = event{}
	s = s[:n]
	*h = s
	if n == 0 {
		return first
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && s[down+1].before(&s[down]) {
			down++
		}
		if !s[down].before(&last) {
			break
		}
		s[i] = s[down]
		i = down
	}
	s[i] = last
	return first
}
