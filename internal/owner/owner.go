package owner

import (
	"slices"
	"time"

	"servicetraceroute/trace"
)

// Owner is what is known of a flow's local socket. It comes in up to two steps:
// the control group as soon as the kernel named it, the process a little later.
type Owner struct {
	Key trace.FlowKey // on the wire
	// Socket is what the socket itself calls the flow, where this host translates
	// addresses or ports before they leave; zero where it is Key.
	Socket trace.FlowKey
	// At is the kernel's time of the SYN that was seen; zero when the flow was asked
	// about later.
	At time.Time
	// Process has PID 0 while it is not known. Its Cgroup is known before.
	Process trace.Process
	// Exe is the base name of the executable, empty when it may not be read.
	Exe string
	// UID is the user of the socket.
	UID uint32
	// Under is the process of Want.Tree whose descendant the owner is; 0: none.
	Under int
	// Final: nothing more will be told.
	Final bool
}

// Is reports whether a name is the process's: what the kernel calls it (15 bytes)
// or its executable's base name.
func (o *Owner) Is(name string) bool {
	switch known := o.Process.Name; {
	case name == "":
		return false
	case len(name) > commLen:
		return known == name || o.Exe == name || known == name[:commLen]
	case len(known) > commLen: // the executable's: the kernel cuts it
		return known[:commLen] == name || o.Exe == name
	default:
		return known == name || o.Exe == name
	}
}

// Want says for which flows an owner is looked for. The zero value is none.
type Want struct {
	// Everyone: any process of this host, which can take milliseconds.
	Everyone bool
	// PIDs are processes by number, Tree one with all its descendants (0: none).
	PIDs []int
	Tree int
	// Cgroups are paths below the cgroup2 root, each with all groups below it.
	Cgroups []string
}

// none reports whether nothing is wanted.
func (w *Want) none() bool {
	return !w.Everyone && w.Tree == 0 && len(w.PIDs) == 0 && len(w.Cgroups) == 0
}

// And returns what either wants. Of two trees only one can be had: then everyone
// is looked at, and the trees are told apart by nobody.
func (w Want) And(o Want) Want {
	w.Everyone = w.Everyone || o.Everyone
	w.PIDs = append(slices.Clip(w.PIDs), o.PIDs...)
	w.Cgroups = append(slices.Clip(w.Cgroups), o.Cgroups...)
	if w.Tree == 0 {
		w.Tree = o.Tree
	}
	return w
}

// Stats count since the Watcher was opened.
type Stats struct {
	Asked   uint64 // questions to the kernel
	Found   uint64 // flows whose process was found
	Unknown uint64 // sockets that were gone, or whose process could not be found
	Dropped uint64 // flows that were not asked about, or whose owner nobody took
}

const (
	commLen    = 15   // of TASK_COMM_LEN without its zero byte
	maxPending = 1024 // flows that wait to be looked at, and owners that wait to be taken
)
