// Package packetfile reads captured packets from files: pcap
// (draft-ietf-opsawg-pcap) in both byte orders, with microseconds or nanoseconds,
// and pcapng (draft-ietf-opsawg-pcapng) with any number of sections and interfaces.
// Packets come as capture.Packet, from the IP header on.
//
// Reader decodes, File is a capture.Source on top of it, at the file's speed. Both
// are total and bounded: any bytes give packets, counters of what was passed over
// and why, and at the end io.EOF or an *Error with the place. What a broken file has
// before that place is handed out.
//
// Where a file does not tell on which way a packet was seen, its Direction is 0: who
// reads it has to decide (Options.Direction). Tagged packets are handed out like
// others; a flow is not followed by them (package flow), so a caller who only listens
// may clear that.
//
// Times are those of the file, of the wall clock of whoever captured. They have no
// reading of the monotonic clock, may go back, and may be of any year up to 9999.
//
// docs/decisions/0036-packetfile.md has the reasons.
package packetfile
