package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"edge": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(run(ctx, &program{os.Stdout, os.Stderr}, os.Args[1:]))
		},
	})
}

// TestScripts runs the stories in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sleep-until-blocks": untilBlocks,
			"code":               exitCode,
			"flip":               flip,
			"contains":           contains,
		},
	})
}

// sleep-until-blocks DIR N waits until the logs in DIR have N blocks.
func untilBlocks(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.ParseUint(args[1], 10, 64)
	ts.Check(err)
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := verifyDir(ts.MkAbs(args[0]))
		if err == nil && len(out.Logs) > 0 && out.Logs[0].Length >= want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has not %d blocks: %+v, %v", args[0], want, out, err)
		}
		time.Sleep(20 * time.Millisecond) // looks again
	}
}

// code N COMMAND... runs a command that must end with exit code N.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if got = -1; strings.HasPrefix(err.Error(), "exit status ") {
			got, _ = strconv.Atoi(strings.TrimPrefix(err.Error(), "exit status "))
		}
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// only returns the one file that matches.
func only(ts *testscript.TestScript, pattern string) string {
	names, err := filepath.Glob(ts.MkAbs(pattern))
	if err != nil || len(names) == 0 {
		ts.Fatalf("no file %s", pattern)
	}
	return names[0]
}

// flip FILE OFFSET inverts a bit of the byte at an offset.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(only(ts, args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	b[0] ^= 4
	_, err = f.WriteAt(b, off)
	ts.Check(err)
}

// contains FILE TEXT checks that a file holds a text somewhere.
func contains(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(only(ts, args[0]))
	ts.Check(err)
	if !strings.Contains(string(b), args[1]) {
		ts.Fatalf("no %s in %s", args[1], args[0])
	}
}
