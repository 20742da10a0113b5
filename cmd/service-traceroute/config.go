package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"servicetraceroute/internal/output"
	"servicetraceroute/internal/spell"
)

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// notInFile are flags that make sense on the command line only.
var notInFile = []string{"config", "help", "help-all", "version"}

// configuration is where a command's flags come from, once it runs.
type configuration struct {
	flags *pflag.FlagSet
	cmd   *cobra.Command
	from  string      // of --config; empty: none
	given []string    // flags of the command line
	own   []ownPolicy // of services, in the file

	terminal bool // there was one at the start, whose hangup would end the command
}

// configurable gives a command the flag --config: a file that sets the flags
// which the command line leaves alone. There is no default place for it. Under
// sudo it would be unclear whose, and what probes others should be seen in the
// command.
func configurable(cmd *cobra.Command, c *configuration) *cobra.Command {
	c.flags, c.cmd = cmd.Flags(), cmd
	c.flags.StringVar(&c.from, "config", "", "read flags from this YAML `FILE` (NAME: VALUE, no dashes; \"services:\" for single ones); flags given here win")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic("main: completion of --config: " + err.Error())
	}
	run := cmd.RunE
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		c.flags.Visit(func(flag *pflag.Flag) { c.given = append(c.given, flag.Name) })
		if c.from == "" {
			return run(cmd, args)
		}
		file, err := c.read()
		if err != nil {
			return err
		}
		if on, err := c.flags.GetBool("verbose"); err == nil && on {
			fmt.Fprintln(cmd.ErrOrStderr(), output.Escape(file.summary()))
		}
		return file.place(run(cmd, args))
	}
	return cmd
}

// read reads the file.
func (c *configuration) read() (*configFile, error) {
	file := &configFile{name: c.from, set: map[string]setting{}}
	return file, file.read(c)
}

// configFile is what a configuration file set.
type configFile struct {
	name string
	set  map[string]setting // by flag
	lost []string           // flags that the command line has as well
}

// setting is where a flag was set.
type setting struct {
	line  int
	items []*yaml.Node // of a list
}

// summary says what the file did.
func (f *configFile) summary() string {
	var names []string
	for flag := range f.set {
		names = append(names, flag)
	}
	slices.Sort(names)
	text := fmt.Sprintf("configuration file %s sets: %s", f.name, strings.Join(names, ", "))
	if len(names) == 0 {
		text = fmt.Sprintf("configuration file %s sets nothing", f.name)
	}
	if len(f.lost) > 0 {
		text += "; overridden by flags: " + strings.Join(f.lost, ", ")
	}
	return text
}

// wrong is an error at a line of the file.
func (f *configFile) wrong(line int, hint, format string, args ...any) error {
	return usage(fmt.Errorf("%s:%d: "+format, append([]any{f.name, line}, args...)...), hint)
}

// read sets the flags that the user did not set.
func (f *configFile) read(c *configuration) error {
	c.own = nil
	root, err := f.parse()
	if err != nil || root == nil {
		return err
	}
	if root.Kind != yaml.MappingNode {
		return f.wrong(root.Line, "for example: host: www.example.com", "lines of the form NAME: VALUE are expected")
	}
	seen := map[string]int{}
	var services *yaml.Node
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if key.Value == servicesKey {
			if line, ok := seen[servicesKey]; ok {
				return f.wrong(key.Line, "keep one of the two", "%s is set twice, first in line %d", servicesKey, line)
			}
			services, seen[servicesKey] = value, key.Line
			f.set[servicesKey] = setting{line: key.Line}
			continue
		}
		flag, mine, err := f.lookup(c.cmd, key)
		if err != nil {
			return err
		}
		if line, ok := seen[flag.Name]; ok {
			hint := "keep one of the two"
			if _, repeats := flag.Value.(pflag.SliceValue); repeats {
				hint = "a list holds several values: " + flag.Name + ": [A, B]"
			}
			return f.wrong(key.Line, hint, "%s is set twice, first in line %d", flag.Name, line)
		}
		seen[flag.Name] = key.Line
		if mine && flag.Changed {
			f.lost = append(f.lost, flag.Name)
			continue
		}
		if err := f.apply(flag, value); err != nil {
			return err
		}
		if mine {
			flag.Changed = true
			f.set[flag.Name] = setting{key.Line, resolve(value).Content}
		}
	}
	if services == nil || c.flags.Lookup("service") == nil { // one file can serve several commands
		return nil
	}
	c.own, err = f.services(c.flags, services)
	return err
}

// yamlLine is how the YAML reader says where something is wrong.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// parse returns the file's only document, nil when it is empty.
func (f *configFile) parse() (*yaml.Node, error) {
	file, err := os.Open(f.name)
	if err != nil {
		return nil, failed(fmt.Errorf("--config: %w", err), "")
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return nil, failed(fmt.Errorf("--config: %w", err), "")
	}
	if len(text) > maxConfig {
		return nil, usage(fmt.Errorf("--config: %s is larger than %d bytes", f.name, maxConfig), "is it the right file?")
	}
	in := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	switch err := in.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		at := yamlLine.FindStringSubmatch(err.Error())
		line := 1
		if at != nil && at[1] != "" {
			line, _ = strconv.Atoi(at[1])
		}
		return nil, f.wrong(line, "YAML: NAME: VALUE on each line, lists as [A, B]", "%s", yamlLine.ReplaceAllString(err.Error(), ""))
	}
	if in.Decode(&more) == nil {
		return nil, f.wrong(more.Line, "one file holds one configuration", "a second document begins here")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

// lookup finds the flag of a key: of this command, or of another one, so that
// one file can serve several commands.
func (f *configFile) lookup(cmd *cobra.Command, key *yaml.Node) (flag *pflag.Flag, mine bool, err error) {
	find := func(set *pflag.FlagSet) *pflag.Flag {
		flag := set.Lookup(key.Value)
		if flag == nil && len(key.Value) == 1 {
			flag = set.ShorthandLookup(key.Value)
		}
		return flag
	}
	names := []string{servicesKey}
	for _, c := range append([]*cobra.Command{cmd}, cmd.Root().Commands()...) {
		if c.Flags().Lookup("config") == nil {
			continue
		}
		if flag := find(c.Flags()); key.Kind == yaml.ScalarNode && flag != nil && !slices.Contains(notInFile, flag.Name) {
			return flag, c == cmd, nil
		}
		c.Flags().VisitAll(func(flag *pflag.Flag) {
			if !slices.Contains(notInFile, flag.Name) {
				names = append(names, flag.Name)
			}
		})
	}
	hint := "its names are those of the flags: " + cmd.CommandPath() + " --help-all"
	if slices.Contains(notInFile, strings.TrimLeft(key.Value, "-")) {
		return nil, false, f.wrong(key.Line, "remove the line", "%q belongs on the command line only", key.Value)
	}
	if like := spell.Nearest(strings.TrimLeft(key.Value, "-"), names); like != "" {
		hint = "did you mean " + like + "?"
	}
	return nil, false, f.wrong(key.Line, hint, "unknown name %q", key.Value)
}

// kinds are the types of flags, in a user's words.
var kinds = map[string]struct{ noun, example string }{
	"bool":     {"neither true nor false", "%s: true"},
	"int":      {"no whole number", "%s: 8"},
	"intSlice": {"no whole number", "%s: 8"},
	"duration": {"no duration", "%s: 90s (also 500ms, 2m, 1h30m)"},
}

// resolve follows an alias (*NAME in YAML).
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// apply sets one flag.
func (f *configFile) apply(flag *pflag.Flag, value *yaml.Node) error {
	value = resolve(value)
	list, repeats := flag.Value.(pflag.SliceValue)
	items := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		if !repeats {
			return f.wrong(value.Line, "write one value: "+flag.Name+": VALUE", "%s: a list, but it takes one value", flag.Name)
		}
		items = value.Content
	}
	var words []string
	for _, item := range items {
		word, err := f.word(flag, resolve(item))
		if err != nil {
			return err
		}
		words = append(words, word)
	}
	set := func() error { return flag.Value.Set(words[0]) }
	if repeats {
		set = func() error { return list.Replace(words) }
	}
	if err := set(); err != nil {
		return f.mismatch(flag, items[0])
	}
	return nil
}

// word is the text of one value, if its kind fits the flag's.
func (f *configFile) word(flag *pflag.Flag, item *yaml.Node) (string, error) {
	if item.Kind != yaml.ScalarNode {
		return "", f.wrong(item.Line, "for example "+flag.Name+": VALUE", "%s: a single value is expected", flag.Name)
	}
	tag, kind := item.ShortTag(), flag.Value.Type()
	switch {
	case tag == "!!null":
		return "", f.wrong(item.Line, "give it one, or remove the line", "%s has no value", flag.Name)
	case kind == "bool" && tag != "!!bool", strings.HasPrefix(kind, "int") && tag != "!!int":
		return "", f.mismatch(flag, item)
	}
	return item.Value, nil
}

// mismatch is the error of a value of the wrong kind.
func (f *configFile) mismatch(flag *pflag.Flag, item *yaml.Node) error {
	kind, ok := kinds[flag.Value.Type()]
	if !ok {
		return f.wrong(item.Line, "", "%s: %q does not fit", flag.Name, item.Value)
	}
	return f.wrong(item.Line, "for example "+fmt.Sprintf(kind.example, flag.Name), "%s: %q is %s", flag.Name, item.Value, kind.noun)
}

// flagName finds flags in messages.
var flagName = regexp.MustCompile(`--([a-z0-9-]+)`)

// place adds file and line to errors about flags that the file set: what was read
// without trouble can turn out wrong later.
func (f *configFile) place(err error) error {
	var all []error
	for _, e := range each(err) {
		all = append(all, f.placeOne(e))
	}
	return errors.Join(all...)
}

func (f *configFile) placeOne(err error) error {
	var told *failure
	if !errors.As(err, &told) {
		return err
	}
	text := told.err.Error()
	for _, m := range flagName.FindAllStringSubmatch(text, -1) {
		s, ok := f.set[m[1]]
		if !ok {
			continue
		}
		line := s.line
		for _, item := range s.items {
			if strings.Contains(text, strconv.Quote(resolve(item).Value)) {
				line = item.Line
				break
			}
		}
		return &failure{fmt.Errorf("%s:%d: %w", f.name, line, told.err), told.hint, told.status}
	}
	return err
}
