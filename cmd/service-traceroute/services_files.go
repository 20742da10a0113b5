package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"servicetraceroute/internal/catalogue"
	"servicetraceroute/internal/output"
)

const servicesCheckHelp = `Check files of services: everything that is wrong is told, with file and line.

Usage:
  service-traceroute services check FILE...

Several files are merged in their order, as with --catalogue.

Examples:
  service-traceroute services check mine.yaml
  service-traceroute services check company.yaml mine.yaml

Exit: 0 all right, 1 something is wrong, 2 usage.
`

const servicesImportHelp = `Write the service list of the older tool (its input.conf, JSON) as a catalogue.

Usage:
  service-traceroute services import [flags] FILE     (-: standard input)

  -o, --out FILE   write to this new file (mode 0600), not to standard output
      --force      also if it is there already

Names get the form of a catalogue: "Sling TV" becomes sling-tv. Entries of
DomainsString with a dot become domains, although that tool looked for them
anywhere in a name; those without one, as "slingtv", become regexes.

Examples:
  service-traceroute services import input.conf
  service-traceroute services import input.conf -o mine.yaml
  service-traceroute services list --catalogue mine.yaml
`

func newServicesCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "whether files of your own are right",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("check needs a file"), "for example: service-traceroute services check mine.yaml")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return failed(checkFiles(cmd.OutOrStdout(), args), "")
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	helpText(cmd, servicesCheckHelp)
	return cmd
}

// checkFiles reads every file, also after one that is wrong.
func checkFiles(w io.Writer, names []string) error {
	base := catalogue.Builtin()
	var wrong []error
	var services, domains int
	var extended, replaced, narrowed []string
	for _, name := range names {
		c, err := readCatalogue(name)
		if err != nil {
			wrong = append(wrong, bare(err))
			continue
		}
		merged, err := base.Merge(c)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		for _, s := range c.All() {
			services, domains = services+1, domains+len(s.Domains)
			had, known := base.Get(s.Name)
			if !known {
				continue
			}
			if !s.Replace && (len(had.Ports) == 0 && len(s.Ports) > 0 || len(had.Protos) == 0 && len(s.Protos) > 0) {
				narrowed = append(narrowed, s.Name)
			}
			if s.Replace {
				replaced = append(replaced, s.Name)
			} else {
				extended = append(extended, s.Name)
			}
		}
		base = merged
	}
	if len(wrong) > 0 {
		return errors.Join(wrong...)
	}
	text := fmt.Sprintf("ok: %s, %s", count(services, "service"), count(domains, "domain"))
	if len(extended) > 0 {
		text += "; adds to " + strings.Join(extended, ", ")
	}
	if len(narrowed) > 0 {
		text += "; narrows " + strings.Join(narrowed, ", ") + ", which had any port or protocol"
	}
	if len(replaced) > 0 {
		text += "; replaces " + strings.Join(replaced, ", ")
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

// bare is an error without the status that another command has for it.
func bare(err error) error {
	if f, ok := err.(*failure); ok {
		return f.err
	}
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func newServicesImportCommand() *cobra.Command {
	var to string
	var force bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "the service list of the older tool as a catalogue",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(fmt.Errorf("import needs one file, not %d", len(args)), "for example: service-traceroute services import input.conf")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if force && to == "" {
				return usage(errors.New("--force: there is no -o FILE"), "")
			}
			text, err := imported(args[0], cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if to == "" {
				_, err = cmd.OutOrStdout().Write(text)
				return failed(err, "")
			}
			return writeNew(to, force, text)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault // files
		},
	}
	cmd.Flags().StringVarP(&to, "out", "o", "", "write to this new `FILE` (mode 0600) instead of standard output")
	cmd.Flags().BoolVar(&force, "force", false, "also write to a file that is there already")
	helpText(cmd, servicesImportHelp)
	return cmd
}

// imported returns the other tool's file as a catalogue; what became other than it was
// is said on stderr.
func imported(name string, stdin io.Reader, stderr io.Writer) ([]byte, error) {
	in := stdin
	if name == "-" {
		name = "standard input"
	} else {
		file, err := os.Open(name)
		if err != nil {
			return nil, failed(err, "")
		}
		defer file.Close()
		in = file
	}
	c, notes, err := catalogue.Import(name, in)
	if err != nil {
		return nil, failed(err, "")
	}
	for _, note := range notes {
		fmt.Fprintf(stderr, "note: %s\n", output.Escape(note))
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "# Imported by service-traceroute; docs/catalogue.md describes this form.\n")
	if err := catalogue.WriteYAML(&text, c.All()); err != nil {
		return nil, failed(err, "")
	}
	if text.Len() > catalogue.MaxBytes {
		return nil, failed(fmt.Errorf("%s: the catalogue would be larger than %d bytes", name, catalogue.MaxBytes), "import it in parts")
	}
	return text.Bytes(), nil
}

// writeNew writes a whole file, and without force only one that is not there.
func writeNew(name string, force bool, text []byte) error {
	create := createNew
	if force {
		create = createPrivate
	}
	file, err := create(name)
	switch {
	case errors.Is(err, fs.ErrExist) && !force:
		return failed(fmt.Errorf("%s is there already", name), "--force writes over it")
	case errors.As(err, new(*failure)):
		return err
	case err != nil:
		return failed(err, "")
	}
	_, err = file.Write(text)
	return failed(errors.Join(err, file.Close()), "")
}
