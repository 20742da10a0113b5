package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"servicetraceroute/internal/demo"
	"servicetraceroute/internal/lab"
)

const demoHelp = `Show on this machine what service-traceroute is for.

It builds a small Internet from network namespaces: a client, routers, two load
balancers with three branches each, a firewall and a web server, all with real
kernels. The client downloads a file over HTTPS, the download's own flow is
traced, and beside it stands what classic traceroutes would have found.

It needs Linux and either root or unprivileged user namespaces; nothing outside
the namespaces is touched, and nothing is left behind. It takes about 8 seconds.

Usage:
  service-traceroute demo

Examples:
  service-traceroute demo
  go run ./cmd/service-traceroute demo   from a checkout, with only Go installed
`

func newDemoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "a small Internet on this machine, a real client and server, traced",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.Enter(); err != nil {
				return failed(err, demoHint(err))
			}
			res, err := demo.Run(cmd.Context(), cmd.ErrOrStderr())
			switch {
			case cmd.Context().Err() != nil:
				return failed(errors.New("interrupted; the network is taken down"), "")
			case err != nil:
				return failed(err, "")
			}
			if err := res.Write(cmd.OutOrStdout()); err != nil {
				return failed(err, "")
			}
			if res.Failed() {
				return failed(errors.New("the demo did not go as it should, see above"), "is the machine very busy? try again")
			}
			return nil
		},
	}
	helpText(cmd, demoHelp)
	return cmd
}

func demoHint(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "run it as root, or allow user namespaces (sysctl user.max_user_namespaces)"
	}
	return "the demo needs Linux"
}
