package capture

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// followEvery is how often a ring looks whether the interfaces of its Config are
// others by now.
const followEvery = time.Second

// resolve finds the interfaces of the Config. One that is gone has index 0, which no
// packet has.
func (r *Ring) resolve() (indexes []int, missing string) {
	for _, name := range r.cfg.Interfaces {
		index, err := r.names.index(name)
		if err != nil {
			index, missing = 0, name
		}
		indexes = append(indexes, index)
	}
	return indexes, missing
}

// follow keeps to the names of the Config when their interfaces are deleted and made
// again with other indexes: of a virtual machine, a tunnel, a modem. It is called
// by the goroutine that reads. What cannot be done is tried again.
func (r *Ring) follow() {
	if len(r.cfg.Interfaces) == 0 || time.Since(r.followed) < followEvery {
		return
	}
	r.followed = time.Now()
	indexes, _ := r.resolve()
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	if slices.Equal(indexes, r.indexes) {
		return
	}
	if r.attach(program(r.filter, indexes, r.shown.only())) == nil && r.bind(indexes) == nil {
		r.indexes = indexes
	}
}

// bind receives from one interface, or from all and leaves the choice to the filter.
func (r *Ring) bind(indexes []int) error {
	addr := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}
	if len(indexes) == 1 {
		if addr.Ifindex = indexes[0]; addr.Ifindex == 0 {
			return nil // 0 would be all; the kernel has unbound the socket already
		}
	}
	if err := r.control(func(fd int) error { return unix.Bind(fd, &addr) }); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}
