package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/child"
	"servicetraceroute/internal/privilege"
)

const runHelp = `Start a command, trace every flow that it or its children open.

Usage:  service-traceroute run [flags] -- CMD [ARGS]

CMD has standard input and output to itself. What was found is said when it has
ended: text on standard error, other formats on standard output; with -o FILE as
it is found. Under sudo CMD runs as the user who called it.

Who:    --user NAME (run CMD as this user)
Narrow: --host ADDR|PREFIX|NAME  --match EXPR  --port N  --interface IF  -4  -6
How:    --algorithm WORD  --probes 3  --max-ttl 32  --timeout 2s  --no-probe
        --retrace D  --when EXPR  --after-close  --share  --exclude PREFIX
Output: --output text|json|reference|scamper  -o FILE  --privacy  -v
        --pcap FILE  --config FILE   All, explained: run --help-all

Examples:
  sudo service-traceroute run -- curl -sO https://www.example.com/file
  sudo service-traceroute run --output json -o paths.ndjson -- firefox
  sudo service-traceroute run --port 443 -- git clone https://example.com/x

Exit: CMD's status, 128+n when signal n ended it, 126/127 not started.
`

func newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run -- CMD [ARGS]",
		Short: "start a command and trace every flow that it opens",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault // files
		},
	}
	cmd.Flags().StringVar(&f.user, "user", "", "run the command as this `NAME` or number")
	f.declareShared(cmd)
	// What follows the command's name is the command's.
	cmd.Flags().SetInterspersed(false)
	helpText(cmd, runHelp)
	return configurable(cmd, &f.configuration)
}

// runFlags are the flags of run as the user wrote them.
type runFlags struct {
	traceFlags
	user string
}

// run starts the command and returns its status as an exitStatus.
func (f *runFlags) run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if len(args) == 0 || args[0] == "" {
		return usage(errors.New("no command to run"), "for example: service-traceroute run -- curl https://www.example.com")
	}
	later := &held{w: stderr} // the terminal is the command's until it ends
	cfg, sel, err := f.settings(later)
	if err != nil {
		return err
	}
	if f.pcap.file == "-" {
		return usage(errors.New("--pcap -: standard output is the command's"), "give the packets a file")
	}
	packets, err := f.pcap.config(&cfg, f.file)
	if err != nil {
		return err
	}
	path, err := child.Find(args[0])
	if err != nil {
		return notStarted(err)
	}
	user, err := f.identity()
	if err != nil {
		return err
	}
	cfg.Processes = true
	oneProcessor()
	tracer, err := servicetraceroute.New(cfg)
	if err != nil {
		return openFailed(err)
	}
	defer func() { err = packets.end(err, tracer.Close()) }()
	if err := packets.open(ctx, stdout, stderr); err != nil {
		return interrupted(ctx, err)
	}
	out := stderr
	if f.format != "text" {
		out = stdout
	}
	w, done, err := f.open(ctx, out, stderr, f.verbose || f.noProbe)
	if err != nil {
		return interrupted(ctx, err)
	}
	s := &session{
		tracer: tracer, sel: sel, w: w, hold: f.file == "", done: done, later: later, stderr: stderr, needed: f.dropping(),
		command: child.Command{Path: path, Argv: args, User: user},
	}
	return s.run(ctx)
}

// identity is whom the command runs as, nil for this process's own user.
func (f *runFlags) identity() (*child.User, error) {
	uid, gid, under := privilege.Invoker()
	switch {
	case f.user != "":
		u, err := child.LookupUser(f.user)
		if err != nil {
			return nil, usage(fmt.Errorf("--user: there is no user %s", strconv.Quote(f.user)), "")
		}
		if int(u.UID) == os.Geteuid() {
			return nil, nil
		}
		if os.Geteuid() != 0 {
			return nil, failed(fmt.Errorf("--user %s: only root may run commands as somebody else", f.user), "leave --user away, or use sudo")
		}
		return u, nil
	case under:
		return child.UserOf(uid, gid), nil
	}
	return nil, nil
}

// notStarted is the error of a command that could not be started, with the status
// that a shell has for it.
func notStarted(err error) error {
	var start *child.StartError
	if !errors.As(err, &start) {
		return failed(err, "")
	}
	hint := "check its name, or give its path: PATH may lack its directory"
	if start.Status == child.StatusNotExecutable {
		hint = "is it a program, and may you execute it?"
	}
	return &failure{err, hint, start.Status}
}

// service names the command in records: its arguments can hold secrets.
func service(argv []string) (name, value string) { return filepath.Base(argv[0]), argv[0] }
