package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

const rootHelp = `service-traceroute shows the path that an application's own packets take.

It listens to the flows an application already has and slips TTL-limited probes
into those very flows, so load balancers, firewalls and NATs treat the probes as
they treat the application. The application does not notice.

Usage:
  service-traceroute COMMAND [flags]

Commands:
  demo         a small Internet on this machine, a real client and server, traced
  trace        trace the flows of hosts as they appear, until stopped
  completion   completion for bash, zsh or fish
  help         help for a command

Examples:
  service-traceroute demo
  service-traceroute trace --host 203.0.113.7
  service-traceroute trace --host www.example.com --port 443 --duration 1m
  service-traceroute trace --host 2001:db8::/32 --output json -o paths.ndjson

Flags:  -h, --help   --version
`

// newRootCommand returns the command line. Each command has a file of its own.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "service-traceroute",
		Short:         "show the path that an application's own packets take",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q", args[0]), "see service-traceroute -h")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("service-traceroute {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	helpText(root, rootHelp)
	root.AddCommand(newDemoCommand(), newTraceCommand())
	return root
}

// helpText gives a command a help that fits a screen; all of its flags are
// listed by --help-all.
func helpText(cmd *cobra.Command, text string) {
	cmd.SetHelpFunc(func(c *cobra.Command, _ []string) {
		if c != cmd {
			fmt.Fprintf(c.OutOrStdout(), "%s\n\n%s", c.Long, c.UsageString())
			return
		}
		fmt.Fprint(c.OutOrStdout(), text)
	})
}

// flagError points to the help of the command whose flag was wrong.
func flagError(cmd *cobra.Command, err error) error {
	return usage(err, "see "+cmd.CommandPath()+" -h")
}

// version is the module's, or the commit's.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	if revision != "" {
		v += " " + revision[:min(12, len(revision))]
	}
	return v
}
