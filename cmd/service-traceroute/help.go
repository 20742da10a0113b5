package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

const helpHelp = `Show the help of a command, or all flags with their meaning and default.

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
				trace, _, err := root.Find([]string{"trace"})
				if err != nil {
					return err
				}
				printFlags(trace)
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

// printFlags lists all flags of a command.
func printFlags(cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	fmt.Fprintf(cmd.OutOrStdout(), "Flags of %s:\n%s", cmd.CommandPath(), cmd.Flags().FlagUsages())
}

const completionHelp = `Print a script that makes a shell complete commands, flags and their values.

Usage:
  service-traceroute completion bash|zsh|fish|powershell

Examples:
  source <(service-traceroute completion bash)
  service-traceroute completion zsh > "${fpath[1]}/_service-traceroute"
  service-traceroute completion fish > ~/.config/fish/completions/service-traceroute.fish
`

var shells = []string{"bash", "zsh", "fish", "powershell"}

func newCompletionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:       "completion SHELL",
		Short:     "completion for bash, zsh, fish or powershell",
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			shell := ""
			if len(args) == 1 {
				shell = args[0]
			}
			switch shell {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return usage(fmt.Errorf("completion needs one shell, not %q", args), "one of bash, zsh, fish, powershell")
		},
	}
	helpText(cmd, completionHelp)
	return cmd
}
