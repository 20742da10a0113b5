package route

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"servicetraceroute/trace"
)

// Interface returns the index and the name of the interface at which the flow's packets
// leave, in the calling thread's network namespace. Its addresses have no zones. An error
// matches syscall.ENETUNREACH where nothing leads there.
func Interface(flow trace.FlowKey) (index int, name string, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, "", fmt.Errorf("route: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, appendRequest(nil, flow), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, "", fmt.Errorf("route: ask for %v: %w", flow.Dst, err)
	}
	var answer [4096]byte
	n, _, err := unix.Recvfrom(fd, answer[:], 0) // the kernel answered within the call that asked
	if err == nil {
		index, err = parseAnswer(answer[:n])
	}
	if err != nil {
		return 0, "", fmt.Errorf("route: of %v: %w", flow.Dst, err)
	}
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return 0, "", fmt.Errorf("route: interface %d: %w", index, err)
	}
	return index, ifi.Name, nil
}
