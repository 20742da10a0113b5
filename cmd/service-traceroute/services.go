package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"servicetraceroute/internal/catalogue"
)

const servicesHelp = `The catalogue: which domains, prefixes and ports belong to which service.

Usage:
  service-traceroute services COMMAND [flags]

Commands:
  list    the services, one a line
  show    some of them, as a file has them
  check   whether files of your own are right
  import  the service list of the older tool (input.conf) as such a file

One catalogue is in the program. Files of your own (--catalogue FILE) add
services to it, and domains to its services; docs/catalogue.md describes them.

Examples:
  service-traceroute services list
  service-traceroute services show netflix > mine.yaml
  service-traceroute services check mine.yaml
`

const servicesListHelp = `List the services of the catalogue, with how much is known of each.

Usage:
  service-traceroute services list [flags]

      --catalogue FILE   also the services of this file, which add to those in
                         the program (repeat)
      --json             whole services, as one JSON object a line

Examples:
  service-traceroute services list
  service-traceroute services list --catalogue mine.yaml
  service-traceroute services list --json | jq -r '.name + " " + .domains[]'
`

const servicesShowHelp = `Show services as they are in a file: what is printed can become one.

Usage:
  service-traceroute services show [flags] NAME...

      --catalogue FILE   with what this file adds (repeat)

Examples:
  service-traceroute services show netflix
  service-traceroute services show netflix youtube > mine.yaml
  service-traceroute services show intranet --catalogue mine.yaml
`

func newServicesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "services COMMAND",
		Short:      "list, show, check and import the catalogue of services",
		SuggestFor: []string{"catalogue", "catalog"},
		Args:       unknownCommand,
		RunE:       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	helpText(cmd, servicesHelp)
	cmd.AddCommand(newServicesListCommand(), newServicesShowCommand(), newServicesCheckCommand(), newServicesImportCommand())
	return cmd
}

// catalogueFlags are the files that are merged over the catalogue in the program.
type catalogueFlags struct{ files []string }

func (f *catalogueFlags) declare(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.files, "catalogue", nil, "also the services of this YAML `FILE`, over those in the program (repeat)")
	if err := cmd.MarkFlagFilename("catalogue", "yaml", "yml"); err != nil {
		panic("main: completion of --catalogue: " + err.Error())
	}
}

// load returns the catalogue with all files. What is wrong in one is a usage error, as
// in a configuration file.
func (f *catalogueFlags) load() (*catalogue.Catalogue, error) {
	var over []*catalogue.Catalogue
	for _, name := range f.files {
		c, err := readCatalogue(name)
		if err != nil {
			return nil, err
		}
		over = append(over, c)
	}
	c, err := catalogue.Builtin().Merge(over...)
	return c, usage(err, "service-traceroute services list shows all names")
}

// readCatalogue reads one file.
func readCatalogue(name string) (*catalogue.Catalogue, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, failed(fmt.Errorf("catalogue: %w", err), "")
	}
	defer file.Close()
	c, err := catalogue.Parse(name, file)
	switch {
	case errors.As(err, new(*catalogue.Error)):
		return nil, usage(err, "")
	case err != nil:
		return nil, failed(err, "")
	}
	return c, nil
}

// complete offers the names of services, with their titles.
func (f *catalogueFlags) complete(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := f.load()
	if err != nil {
		c = catalogue.Builtin() // nobody could read here what is wrong
	}
	var words []string
	for _, s := range c.All() {
		if !slices.Contains(given, s.Name) {
			words = append(words, cobra.CompletionWithDesc(s.Name, s.Title))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

func newServicesListCommand() *cobra.Command {
	var f catalogueFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "the services, one a line",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			list := listServices
			if asJSON {
				list = listServicesJSON
			}
			return failed(list(cmd.OutOrStdout(), c.All()), "")
		},
	}
	f.declare(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "whole services, as one JSON object a line")
	helpText(cmd, servicesListHelp)
	return cmd
}

// listServices prints a table of 80 columns; a name that is longer than its column
// costs its own title. Titles hold nothing but what can be shown.
func listServices(w io.Writer, services []catalogue.Service) error {
	const columns, most = 80, 24
	widest := len("NAME")
	for _, s := range services {
		if len(s.Name) <= most {
			widest = max(widest, len(s.Name))
		}
	}
	table := bufio.NewWriter(w)
	fmt.Fprintf(table, "%-*s  DOMAINS  REGEXES  PREFIXES  PORTS  TITLE\n", widest, "NAME")
	for _, s := range services {
		line := fmt.Sprintf("%-*s  %7d  %7d  %8d  %5d  %s", widest, s.Name, len(s.Domains), len(s.Regexes), len(s.Prefixes), len(s.Ports), s.Title)
		if utf8.RuneCountInString(line) > columns {
			line = string([]rune(line)[:columns-1]) + "…"
		}
		fmt.Fprintln(table, strings.TrimRight(line, " "))
	}
	return table.Flush()
}

func listServicesJSON(w io.Writer, services []catalogue.Service) error {
	enc := json.NewEncoder(w)
	for _, s := range services {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

func newServicesShowCommand() *cobra.Command {
	var f catalogueFlags
	cmd := &cobra.Command{
		Use:   "show NAME...",
		Short: "some of them, as a file has them",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("show needs the name of a service"), "service-traceroute services list shows all names")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			var chosen []catalogue.Service
			for _, name := range args {
				s, ok := c.Get(name)
				if !ok {
					return unknownService(c, name)
				}
				chosen = append(chosen, s)
			}
			return failed(catalogue.WriteYAML(cmd.OutOrStdout(), chosen), "")
		},
		ValidArgsFunction: f.complete,
	}
	f.declare(cmd)
	helpText(cmd, servicesShowHelp)
	return cmd
}

// unknownService is the error of a name that no service has.
func unknownService(c *catalogue.Catalogue, name string) error {
	hint := "service-traceroute services list shows all names"
	if like := c.Suggest(name); len(like) > 0 {
		hint = "did you mean " + strings.Join(like, " or ") + "?"
	}
	return usage(fmt.Errorf("unknown service %q", name), hint)
}
