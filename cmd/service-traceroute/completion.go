package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

const completionHelp = `Print a script that makes a shell complete commands, flags and their values.

Usage:
  service-traceroute completion bash|zsh|fish|powershell

To have it in every new shell, once:
  bash   mkdir -p ~/.local/share/bash-completion/completions
         service-traceroute completion bash \
           > ~/.local/share/bash-completion/completions/service-traceroute
         (without the bash-completion package: the first example in ~/.bashrc)
  zsh    service-traceroute completion zsh > "${fpath[1]}/_service-traceroute"
         (needs "autoload -U compinit; compinit" in ~/.zshrc)
  fish   mkdir -p ~/.config/fish/completions
         service-traceroute completion fish \
           > ~/.config/fish/completions/service-traceroute.fish

Examples:
  source <(service-traceroute completion bash)      in this bash only
  source <(service-traceroute completion zsh)       in this zsh only
  service-traceroute completion fish | source       in this fish only
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
				return bashCompletion(root, out)
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

// bashShims stand in for two functions of the bash-completion package, which
// cobra's script calls and many servers lack.
const bashShims = `
# The words of the line up to the cursor; not split at = and :, as bash does.
__service-traceroute_words()
{
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref "$@"
        return
    fi
    local line=${COMP_LINE:0:COMP_POINT}
    read -r -a words <<<"${line}"
    [[ ${line} == *[[:space:]] ]] && words+=("")
    cword=$((${#words[@]} - 1))
    cur=${words[cword]}
    prev=
    ((cword > 0)) && prev=${words[cword - 1]}
    return 0
}

__service-traceroute_filedir()
{
    if declare -F _filedir >/dev/null; then
        _filedir "$@"
        return
    fi
    local kind=-f name
    [[ ${1-} == -d ]] && kind=-d
    COMPREPLY=()
    while IFS= read -r name; do
        COMPREPLY+=("${name}")
    done < <(compgen "${kind}" -- "${cur}")
    type compopt &>/dev/null && compopt -o filenames 2>/dev/null
    return 0
}
`

// bashCompletion is cobra's script, made to work without the bash-completion
// package too.
func bashCompletion(root *cobra.Command, out io.Writer) error {
	var script bytes.Buffer
	if err := root.GenBashCompletionV2(&script, true); err != nil {
		return err
	}
	text := strings.NewReplacer(
		"_get_comp_words_by_ref ", "__service-traceroute_words ",
		`"_filedir `, `"__service-traceroute_filedir `,
		" _filedir -d", " __service-traceroute_filedir -d",
		" _filedir\n", " __service-traceroute_filedir\n",
	).Replace(script.String())
	first, rest, _ := strings.Cut(text, "\n")
	_, err := io.WriteString(out, first+"\n"+bashShims+rest)
	return err
}
