package main

import (
	"fmt"
	"runtime/debug"
	"strings"

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
  completion   completion for bash, zsh, fish or powershell
  help         help for a command; "help flags" lists all flags

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
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "see service-traceroute -h"
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				hint = "did you mean " + strings.Join(like, " or ") + "?"
			}
			return usage(fmt.Errorf("unknown command %q", args[0]), hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("service-traceroute {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	helpText(root, rootHelp)
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelpCommand())
	root.AddCommand(newDemoCommand(), newTraceCommand(), newCompletionCommand())
	return root
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
