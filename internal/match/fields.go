package match

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// flow is what an expression sees of a flow. The tags are the names of the fields, which
// docs/match.md explains.
type flow struct {
	Proto     string   `expr:"proto"`
	Src       string   `expr:"src"`
	SPort     int      `expr:"sport"`
	Dst       string   `expr:"dst"`
	DPort     int      `expr:"dport"`
	Port      int      `expr:"port"`
	Direction string   `expr:"direction"`
	Interface string   `expr:"interface"`
	Family    int      `expr:"family"`
	IPv6      bool     `expr:"ipv6"`
	Name      string   `expr:"name"`
	Names     []string `expr:"names"`
	Process   string   `expr:"process"`
	Exe       string   `expr:"exe"`
	PID       int      `expr:"pid"`
	UID       int      `expr:"uid"`
	Cgroup    string   `expr:"cgroup"`
}

// uses are the fields of an expression that are not known from the start.
type uses uint8

const (
	usesName uses = 1 << iota
	usesNames
	usesProcess // and pid
	usesExe
	usesUID
	usesCgroup
	usesInterface

	ofWords = usesName | usesNames
	ofOwner = usesProcess | usesExe | usesUID | usesCgroup
)

// field is what is known of a field before there is a flow.
type field struct {
	uses uses
	// constant brings what the field is compared with into the field's form, and refuses
	// what it can never be; nil: anything.
	constant func(string) (string, error)
}

// fields are all there are.
var fields = map[string]field{
	"proto": {constant: oneOf("tcp", "udp")}, "direction": {constant: oneOf("out", "in", "transit")},
	"src": {constant: address}, "dst": {constant: address},
	"sport": {}, "dport": {}, "port": {}, "family": {}, "ipv6": {},
	"interface": {uses: usesInterface},
	"name":      {usesName, hostName}, "names": {usesNames, hostName},
	"process": {uses: usesProcess}, "pid": {uses: usesProcess}, "exe": {uses: usesExe}, "uid": {uses: usesUID}, "cgroup": {uses: usesCgroup},
}

// Fields returns the names of the fields, sorted.
func Fields() []string {
	var all []string
	for name := range fields {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func oneOf(words ...string) func(string) (string, error) {
	return func(word string) (string, error) {
		if low := strings.ToLower(word); slices.Contains(words, low) {
			return low, nil
		}
		return "", fmt.Errorf("%q is none of %s", word, strings.Join(words, ", "))
	}
}

func address(word string) (string, error) {
	a, err := netip.ParseAddr(word)
	if err != nil {
		return "", fmt.Errorf("%q is no address", word)
	}
	return a.Unmap().WithZone("").String(), nil
}

// hostName is a name as it is known from the wire.
func hostName(word string) (string, error) {
	return strings.ToLower(strings.TrimSuffix(word, ".")), nil
}

// moment is a flow with what is known of it now.
type moment struct {
	flow
	listen, wait, never uses // fields that come with the first words, with the owner, not at all
}

// see describes a flow as its records do.
func see(t trace.Tuple, k *service.Known) *moment {
	m := &moment{flow: flow{
		Proto: t.Proto.String(), Src: t.Src.Addr().String(), SPort: int(t.Src.Port()), Dst: t.Dst.Addr().String(), DPort: int(t.Dst.Port()),
		Port: int(t.Dst.Port()), Direction: t.Direction.String(), Interface: t.Interface, Family: 4, Name: k.Words.Name, Names: []string{},
	}}
	if t.Direction == trace.In {
		m.Port = m.SPort
	}
	if t.Dst.Addr().Is6() {
		m.Family, m.IPv6 = 6, true
	}
	if k.Words.Awaited {
		m.listen = ofWords
	}
	if k.Words.Name != "" {
		m.Names = append(m.Names, k.Words.Name)
	} else {
		for _, n := range k.Names {
			m.Names = append(m.Names, n.Chain...)
		}
	}
	m.owner(k)
	return m
}

// owner is what is known of the flow's process. What cannot be found out any more is
// neither equal to anything nor different from it.
func (m *moment) owner(k *service.Known) {
	o := k.Owner
	if o == nil {
		m.wait = ofOwner
		return
	}
	p := o.Process
	m.Process, m.PID, m.Exe, m.UID, m.Cgroup = p.Name, p.PID, o.Exe, int(o.UID), p.Cgroup
	var unknown uses
	if p.PID == 0 {
		unknown |= usesProcess
	}
	if o.Exe == "" {
		unknown |= usesExe
	}
	if p.Cgroup == "" {
		unknown |= usesCgroup
	}
	if o.Final {
		m.never = unknown
	} else {
		m.wait = unknown
	}
}
