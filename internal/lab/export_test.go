//go:build linux

package lab

import "servicetraceroute/internal/lab/node"

// AddRoles gives the nodes of this test binary more abilities. It has to be
// called before Main.
func AddRoles(roles func() node.Roles) { extraRoles = append(extraRoles, roles) }

// Sweep removes what dead controllers left in a directory.
var Sweep = sweep

// RegistryPrefix begins the names of the directories of live labs.
const RegistryPrefix = registryPrefix

// Dir returns the lab's directory.
func (l *Lab) Dir() string { return l.registry.dir }

// Pids returns all the lab's processes.
func (l *Lab) Pids() []int {
	var pids []int
	for _, n := range l.nodes {
		pids = append(pids, n.Pid())
	}
	for _, n := range l.links {
		pids = append(pids, n.Pid())
	}
	return pids
}
