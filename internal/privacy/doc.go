// Package privacy masks what identifies people in records: addresses, names,
// processes. It stands between whoever makes records and whoever writes them, copies
// what it changes and does no I/O. docs/decisions/0035-outputs.md has the reasons.
//
// Addresses are replaced by others of the same kind (private stays private, global
// stays global), one for one, so that the same router has the same address in all
// records of a run, and neighbours stay neighbours. Names become name- and twelve
// hex digits. Nobody who lacks the Key can tell which is which, and the command
// forgets it when it ends. Ports, times, TTLs, labels and counters stay.
package privacy
