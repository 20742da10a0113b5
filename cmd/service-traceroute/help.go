package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

const helpHelp = `Show the help of a command, or the flags of trace and their defaults.

Usage:
  service-traceroute help [COMMAND]
  service-traceroute help flags

Examples:
  service-traceroute help trace
  service-traceroute help flags
`

// newHelpCommand is cobra's help command with "flags" beside the commands: the
// help of a command fits a screen, so it cannot explain every flag.
func newHelpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "help for a command",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			words := []string{"flags"}
			for _, c := range cmd.Root().Commands() {
				words = append(words, c.Name())
			}
			if len(args) > 0 {
				words = nil
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			if len(args) == 1 && args[0] == "flags" {
				printFlags(root)
				return nil
			}
			topic, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 || len(args) > 0 && topic == root {
				return usage(fmt.Errorf("no help for %q", args), "see service-traceroute -h")
			}
			return topic.Help()
		},
	}
	helpText(cmd, helpHelp)
	return cmd
}

// helpText gives a command a help that fits a screen of 24 lines and has
// examples.
func helpText(cmd *cobra.Command, text string) {
	cmd.SetHelpFunc(func(c *cobra.Command, _ []string) { fmt.Fprint(c.OutOrStdout(), text) })
}

// printFlags lists all flags of a command; of the whole those of trace, which has
// nearly all.
func printFlags(cmd *cobra.Command) {
	if !cmd.HasParent() {
		trace, _, err := cmd.Find([]string{"trace"})
		if err != nil {
			panic("main: " + err.Error())
		}
		cmd = trace
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	fmt.Fprintf(cmd.OutOrStdout(), "Flags of %s:\n%s", cmd.CommandPath(), cmd.Flags().FlagUsages())
}
