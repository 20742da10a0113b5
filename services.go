package servicetraceroute

import (
	"fmt"
	"net/netip"
	"strings"

	"servicetraceroute/internal/catalogue"
	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Service is a named set of hosts. A flow belongs to it when its name or its address is
// one of Hosts and it has one of Ports and one of Protos; without Hosts the ports alone
// tell. Of several services that a flow fits the one with the most specific host is
// named.
type Service struct {
	Name string
	// Hosts are prefixes, addresses, names, wildcards and regular expressions as those of
	// a Selection. Names are not resolved: flows are known by their clients' first words
	// and by DNS answers on the wire.
	Hosts  []string
	Ports  []string      // as those of a Selection; empty is all
	Protos []trace.Proto // empty is all
	// Except are hosts that do not belong to it, whatever else fits.
	Except []string
}

// CataloguedService returns a service of the catalogue that comes with this module, such
// as "netflix"; ok is false if there is none of that name. Case does not matter.
func CataloguedService(name string) (s Service, ok bool) {
	entry, ok := catalogue.Builtin().Get(name)
	if !ok {
		return s, false
	}
	return Service{Name: entry.Name, Hosts: entry.Hosts(), Ports: entry.PortTexts(), Protos: entry.Protos, Except: entry.Except()}, true
}

// offer turns a service into the selector's terms.
func (s Service) offer() (o service.Offer, err error) {
	if s.Name == "" || len(s.Hosts)+len(s.Ports) == 0 {
		return o, fmt.Errorf("service %q: needs a name, and hosts or ports", s.Name)
	}
	o = service.Offer{Name: s.Name, Protos: s.Protos}
	for _, text := range s.Ports {
		r, err := service.ParsePorts(text)
		if err != nil {
			return o, fmt.Errorf("service %q: %w", s.Name, err)
		}
		o.Ports = append(o.Ports, r)
	}
	prefixes, set, err := patterns(s.Hosts)
	if err != nil {
		return o, fmt.Errorf("service %q: %w", s.Name, err)
	}
	for _, p := range prefixes {
		o.Rules = append(o.Rules, service.Rule{Prefix: p, Service: trace.Service{Name: s.Name, By: trace.ByPrefix, Value: p.String()}})
	}
	if set != nil { // not a nil pointer in an interface
		o.Domains = set
	}
	o.ExceptPrefixes, set, err = patterns(s.Except)
	if err != nil {
		return o, fmt.Errorf("service %q, except: %w", s.Name, err)
	}
	if set != nil {
		o.Except = set
	}
	return o, nil
}

// patterns tells prefixes and addresses from names.
func patterns(hosts []string) (prefixes []netip.Prefix, set *domain.Set, err error) {
	var names []string
	for _, host := range hosts {
		if a, err := netip.ParseAddr(host); err == nil {
			a = a.Unmap().WithZone("")
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		if strings.Contains(host, "/") && !strings.HasPrefix(host, "/") {
			p, err := netip.ParsePrefix(host)
			if err != nil {
				return nil, nil, fmt.Errorf("%q is not a prefix", host)
			}
			one, _ := ordinary([]netip.Prefix{p}) // it is valid
			prefixes = append(prefixes, one...)
			continue
		}
		names = append(names, host)
	}
	if len(names) > 0 {
		set, err = domain.New(names)
	}
	return prefixes, set, err
}

// offers turns the selection's services into the selector's terms.
func (s Selection) offers() (all []service.Offer, err error) {
	for _, one := range s.Services {
		o, err := one.offer()
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	return all, nil
}
