// Package names reads what DNS answers seen on the wire say about addresses. Fed
// with the messages of a resolver's UDP and TCP traffic, Cache answers for an
// address under which names it was asked for. It does no I/O and reads no clock:
// the time is an argument. Which packets are DNS, and in whose name a flow that has
// several is traced, is decided elsewhere.
//
// # What counts
//
// Answers without error to one question for A, AAAA, HTTPS or SVCB. All names of
// the CNAME chain from the question's name name its addresses. The hints of HTTPS and
// SVCB records (RFC 9460) count like addresses, and the records' targets, which clients
// ask for next, are remembered: an address found under such a target is also one of
// the name that led there. ANY is left out: nobody connects by it. DNAME needs nothing, a
// CNAME comes with it (RFC 6672 section 3.1). Of a truncated answer what is there
// counts; the whole one follows over TCP.
//
// Names are what github.com/miekg/dns makes of them (RFC 1035 section 5.1, with \. and
// \DDD), in lower case and without the last dot. Names of another script are thus
// their xn-- form.
//
// # What a liar can do
//
// DNS over UDP proves nothing about its sender. Who can make us see a packet could
// name any address, so Answer believes only what answers a question that Query saw: same addresses,
// ports, id, name and type, once, as the client itself does. Whoever can see or guess
// those poisons the client too. And who owns a name may truly give it the addresses of
// somebody else. All that can come of it is a flow traced, or not traced, under
// a wrong service's name, in a record that says it was DNS that named it. Hops never depend on names.
package names
