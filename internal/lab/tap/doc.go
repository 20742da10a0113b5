// Package tap is the lab's own eye: a small packet ring and a reader of IP, TCP,
// UDP and ICMP headers, for the link emulator and the observer.
//
// It shares nothing with the product's capture and wire packages on purpose. What
// the observer says is the truth that the product is compared with; a mistake in
// code that both used would be invisible.
package tap
