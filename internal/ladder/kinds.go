package ladder

import (
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// kinds are a record's words for ICMP's.
var kinds = map[wire.ICMPKind]trace.ReplyKind{
	wire.TimeExceeded: trace.TimeExceeded, wire.NetUnreachable: trace.NetUnreachable, wire.HostUnreachable: trace.HostUnreachable,
	wire.PortUnreachable: trace.PortUnreachable, wire.AdminProhibited: trace.AdminProhibited, wire.OtherUnreachable: trace.Unreachable,
	wire.PacketTooBig: trace.PacketTooBig,
}
