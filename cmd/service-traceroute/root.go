package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"servicetraceroute/internal/spell"
)

const rootHelp = `service-traceroute shows the path that an application's own packets take.

It slips TTL-limited probes into the flows an application already has, so load
balancers, firewalls and NATs treat them as its own. The application sees none.

Usage:  service-traceroute COMMAND [flags]
Commands:
  demo         a small Internet on this machine, real client and server, traced
  trace        trace the flows of hosts as they appear, until stopped
  run          start a command and trace every flow that it opens
  dial         no application at hand: open a connection and trace inside it
  compare      trace beside new flows to the same destination: what differs
  join         put together the traces of one flow from both of its hosts
  replay       read a capture file: its flows, services, probes and replies
  services     list, show, check and import the catalogue of services
  selftest     show on this machine that tracing does no harm to flows
  completion   completion for bash, zsh, fish or powershell
  help         help for a command; "help flags" lists the flags of trace

Examples:
  service-traceroute run -- curl -sO https://www.example.com/file
  service-traceroute trace --host www.example.com --port 443 --duration 1m

Flags:  -h, --help   --help-all   --version
`

// newRootCommand returns the command line. Each command has a file of its own.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "service-traceroute",
		Short:         "show the path that an application's own packets take",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("service-traceroute {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	helpText(root, rootHelp)
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	help := newHelpCommand()
	root.SetHelpCommand(help)
	root.AddCommand(newDemoCommand(), newTraceCommand(), newRunCommand(), newDialCommand(), newCompareCommand(), newJoinCommand(), newReplayCommand(),
		newServicesCommand(), newSelftestCommand(), newCompletionCommand())
	uniform(help)
	uniform(root)
	return root
}

// unknownCommand is the error of a command that has only commands below it.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see " + cmd.CommandPath() + " -h"
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "did you mean " + strings.Join(like, " or ") + "?"
	}
	return usage(fmt.Errorf("unknown command %q", args[0]), hint)
}

// uniform gives a command and those below it what every command has: --version, and
// --help-all, for which no other argument is needed.
func uniform(cmd *cobra.Command) {
	var all bool
	cmd.Version = version()
	cmd.Flags().BoolVar(&all, "help-all", false, "list all flags")
	check, run := cmd.Args, cmd.RunE
	cmd.Args = func(c *cobra.Command, args []string) error {
		if all || check == nil {
			return nil
		}
		return check(c, args)
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if all {
			printFlags(c)
			return nil
		}
		return run(c, args)
	}
	for _, below := range cmd.Commands() {
		uniform(below)
	}
}

// flagError points to the help of the command whose flag was wrong.
func flagError(cmd *cobra.Command, err error) error {
	hint := "see " + cmd.CommandPath() + " -h"
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		name := unknown.GetSpecifiedName()
		if like := spell.Nearest(name, names); strings.HasPrefix(like, name) || like != "" && spell.Distance(name, like) == 1 {
			hint = "did you mean --" + like + "?"
		}
	}
	return usage(err, hint)
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
