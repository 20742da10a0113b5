//go:build linux

package lab

import (
	"context"
	"maps"

	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
)

// roles are all abilities of a node: those that configure it, and what the
// subpackages let it do.
func roles() node.Roles {
	all := node.Roles{
		"lab/prepare":         node.Role(prepare),
		"lab/wire":            node.Role(wire),
		"lab/configure":       node.Role(configure),
		"lab/ready":           node.Role(ready),
		"lab/routes":          node.Role(changeRoutes),
		"lab/sysctl":          node.Role(sysctlRole),
		"lab/counters":        node.Role(ruleCounters),
		"lab/conntrack":       node.Role(conntrack),
		"lab/conntrack-stats": node.Role(conntrackStats),
	}
	maps.Copy(all, link.Roles())
	maps.Copy(all, observe.Roles())
	maps.Copy(all, peer.Roles())
	for _, more := range extraRoles {
		maps.Copy(all, more())
	}
	return all
}

// extraRoles are added by the tests of this package.
var extraRoles []func() node.Roles

type sysctlArg struct {
	Name  string
	Value *string // nil: read only
}

func sysctlRole(_ context.Context, arg sysctlArg) (string, error) {
	if arg.Value != nil {
		if err := writeSysctl(arg.Name, *arg.Value); err != nil {
			return "", err
		}
	}
	return readSysctl(arg.Name)
}
