// Command edge samples the sensors of a board into a log that survives power
// cuts, sells feeds of it, and buys them.
//
// Words go to standard error, data to standard output. Exit codes: 0 ok,
// 1 failed, 2 usage, 3 configuration, 4 unreachable, 5 not paid, refused or
// replaced, 6 does not verify.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"dazaar-edge/cmd/edge/show"
	"dazaar-edge/configs"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitConfig      = 3
	exitUnreachable = 4
	exitRefused     = 5
	exitUnproven    = 6
)

// program is what a command works with.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// errUsage says that the command line is wrong and that this was said.
var errUsage = errors.New("usage")

type command struct {
	name, args, short string
	run               func(p *program, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"init", "[-c edge.yaml] [--name NAME] …", "write a configuration and make the keys", initCommand},
		{"check", "[-c edge.yaml]", "check a configuration, and read each sensor once", checkCommand},
		{"run", "[-c edge.yaml]", "sample sensors into the log, and sell it, until stopped", runCommand},
		{"card", "[--feed NAME] [--link | --qr]", "print the signed card of a feed, or a link to it", cardCommand},
		{"buy", "KEY [--seller HOST:PORT]", "buy a feed from its seller and print its readings", buyCommand},
		{"sensors", "[--json]", "print the newest readings of a running edge", sensorsCommand},
		{"buyers", "[--json]", "print who bought, and what is left of it", buyersCommand},
		{"ledger", "[--daily | --csv | --bought]", "print invoices and payments, sold or bought", ledgerCommand},
		{"revoke", "BUYER [--burn | --undo]", "end a sale", revokeCommand},
		{"status", "[--json]", "print how a running edge does", statusCommand},
		{"doctor", "[--json]", "find out why a device can be reached, or cannot", doctorCommand},
		{"relay", "[--key FILE] [--rate 10Mbit/s] …", "pass on between peers who cannot reach each other", relayCommand},
		{"verify", "DIR | --receipt FILE | --proof FILE", "check every byte of logs, a receipt, or what was bought", verifyCommand},
		{"repair", "DIR [--moved | --new-identity]", "cut or mark what is damaged, and say what", repairCommand},
		{"version", "", "print the version", versionCommand},
	}
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: edge COMMAND [arguments]")
	fmt.Fprintln(w)
	for _, c := range commands() {
		fmt.Fprintf(w, "  edge %-8s %-31s %s\n", c.name, c.args, c.short)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		stop() // a second signal ends it at once
		time.Sleep(grace)
		fmt.Fprintln(os.Stderr, "edge: it did not end in time: somebody does not read its output, or a disk does not answer")
		os.Exit(1)
	})
	os.Exit(run(ctx, &program{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// grace is how long a command may take to end when it is told to.
const grace = 10 * time.Second

// run runs a command line and returns the exit code.
func run(ctx context.Context, p *program, args []string) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(p.stderr)
		if len(args) == 0 {
			return exitUsage
		}
		return exitOK
	}
	out := &keeper{w: p.stdout}
	p.stdout = out
	for _, c := range commands() {
		if c.name == args[0] {
			err := c.run(p, ctx, args[1:])
			if err == nil && out.err != nil {
				err = fmt.Errorf("standard output: %w", out.err)
			}
			return p.report(err)
		}
	}
	fmt.Fprintf(p.stderr, "edge: unknown command %q\n", args[0])
	usage(p.stderr)
	return exitUsage
}

// keeper is a writer that remembers its first error: of what is printed for people
// nobody looks at it.
type keeper struct {
	w   io.Writer
	err error
}

func (k *keeper) Write(b []byte) (int, error) {
	n, err := k.w.Write(b)
	if err != nil && k.err == nil {
		k.err = err
	}
	return n, err
}

// report says what went wrong and returns the exit code for it.
func (p *program) report(err error) int {
	var config *configs.Error
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, show.ErrUnproven):
		return exitUnproven
	case errors.Is(err, errCheck):
		return exitFailed
	}
	fmt.Fprintln(p.stderr, "edge:", err)
	var conflict *replicate.ConflictError
	switch {
	case errors.As(err, &config):
		return exitConfig
	case errors.Is(err, client.ErrUnreachable), errors.Is(err, errNotRunning):
		return exitUnreachable
	case errors.Is(err, client.ErrRefused), errors.Is(err, client.ErrBusy), errors.Is(err, client.ErrUnpaid):
		return exitRefused
	case errors.As(err, &conflict), errors.Is(err, replicate.ErrInvalid), errors.Is(err, dazaar.ErrSignature), errors.Is(err, secretstream.ErrIdentity),
		errors.Is(err, client.ErrInvoice), errors.Is(err, card.ErrCard), errors.Is(err, card.ErrSignature), errors.Is(err, card.ErrOlder):
		return exitUnproven
	}
	return exitFailed
}

// flags returns a flag set that writes to standard error.
func (p *program) flags(name, args string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(p.stderr)
	f.Usage = func() {
		fmt.Fprintf(p.stderr, "usage: edge %s %s\n", name, args)
		f.PrintDefaults()
	}
	return f
}

// parse reads flags before and behind the other arguments, of which there must
// be n.
func (p *program) parse(f *flag.FlagSet, args []string, n int) ([]string, error) {
	var rest []string
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, errUsage
		}
		if f.NArg() == 0 {
			break
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
	if len(rest) != n {
		f.Usage()
		return nil, errUsage
	}
	return rest, nil
}

// version is set by the linker.
var version = "dev"

func versionCommand(p *program, _ context.Context, args []string) error {
	if _, err := p.parse(p.flags("version", ""), args, 0); err != nil {
		return err
	}
	goVersion := "unknown Go"
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
	}
	fmt.Fprintf(p.stdout, "edge %s (%s)\n", version, goVersion)
	return nil
}
