package main

import (
	"github.com/spf13/cobra"

	"servicetraceroute"
)

// serviceFlags say which services of the catalogue are traced.
type serviceFlags struct {
	catalogueFlags
	services []string
}

func (f *serviceFlags) declareAll(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.services, "service", nil, "a service of the catalogue by its `NAME` (repeat; services list shows all)")
	f.catalogueFlags.declare(cmd)
	if err := cmd.RegisterFlagCompletionFunc("service", f.complete); err != nil {
		panic("main: completion of --service: " + err.Error())
	}
}

// selected are the services that were asked for, as the library takes them.
func (f *serviceFlags) selected() (all []servicetraceroute.Service, err error) {
	if len(f.services)+len(f.files) == 0 {
		return nil, nil
	}
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	for _, name := range f.services {
		s, ok := c.Get(name)
		if !ok {
			return nil, unknownService(c, name)
		}
		all = append(all, servicetraceroute.Service{
			Name: s.Name, Hosts: s.Hosts(), Ports: s.PortTexts(), Protos: s.Protos, Except: s.Except(),
		})
	}
	return all, nil
}
