// Command agent runs in the emulated board and does what the test on the host asks for,
// one command for each connection: a JSON array of words, answered with the output and a
// last line "\x00N", the exit code.
//
//	["run", PROGRAM, ARG…]     runs to its end
//	["start", PROGRAM, ARG…]   starts, with the agent's own output; one at a time
//	["stop"]                   ends what was started, as systemd would
//	["write", FILE, TEXT]      writes a file of the kernel
//	["off"]                    unmounts and switches the board off
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
)

func main() {
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	fmt.Println("agent: ready")
	a := &agent{}
	for {
		c, err := ln.Accept()
		if err != nil {
			continue
		}
		if a.serve(c) {
			return // the board goes off with its program
		}
	}
}

type agent struct {
	started *exec.Cmd
}

// serve does one command, and tells whether it was the last.
func (a *agent) serve(c net.Conn) (off bool) {
	defer c.Close()
	var words []string
	if json.NewDecoder(c).Decode(&words) != nil || len(words) == 0 {
		return false
	}
	code := 0
	if err := a.do(c, words); err != nil {
		code = 1
		if exit := (*exec.ExitError)(nil); asExit(err, &exit) {
			code = exit.ExitCode()
		} else {
			fmt.Fprintln(c, err)
		}
	}
	fmt.Fprintf(c, "\x00%d\n", code)
	return words[0] == "off"
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // exec returns it as it is
	*to = e
	return ok
}

func (a *agent) do(c net.Conn, words []string) error {
	switch words[0] {
	case "run":
		cmd := exec.Command(words[1], words[2:]...)
		cmd.Stdout, cmd.Stderr = c, c
		return cmd.Run()
	case "start":
		a.started = exec.Command(words[1], words[2:]...)
		a.started.Stdout, a.started.Stderr = os.Stdout, os.Stderr
		return a.started.Start()
	case "stop":
		if err := a.started.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return a.started.Wait()
	case "write":
		return os.WriteFile(words[1], []byte(words[2]), 0)
	}
	return nil
}
