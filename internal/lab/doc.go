// Package lab makes real networks of scenario.Network descriptions: each node is
// a child process in a Linux network namespace of its own, links are veth pairs
// straight between the namespaces, and the kernel does the routing, filtering,
// translating and balancing. It needs CAP_SYS_ADMIN and CAP_NET_ADMIN, or a
// user namespace, see [Enter].
//
// A node is this same binary started again, so a program that opens labs calls
// [Main] before anything else. A namespace has no name and no file: it lives as
// long as its processes, and these end when the controller closes the lab or is
// gone, however it went.
//
// Nothing moves in a lab by itself but a few IPv6 multicast listener reports in
// its first second: neighbours are known from the start, and there is no
// duplicate address detection and no router advertisement.
//
// What nodes can be asked to do are roles (internal/lab/node). The ones of this
// package configure the node; servers, clients and observers are in the
// subpackages. Descriptions come from internal/scenario, which also works out
// addresses and routes; nothing here decides where a packet goes.
package lab
