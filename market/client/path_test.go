package client

import (
	"log/slog"
	"testing"

	"dazaar-edge/protocol/dazaar"
)

// TestReplacedWhileMoving: one that is told, while it moves to a better address, that
// another machine took over does not go on there; it does when the old connection ends
// for any other reason.
func TestReplacedWhileMoving(t *testing.T) {
	for code, goesOn := range map[string]bool{dazaar.CodeReplaced: false, dazaar.CodeRevoked: false, dazaar.CodeClosing: true, dazaar.CodeBusy: true} {
		v, next := &visit{}, &visit{}
		c := &Client{current: v, moving: true, log: slog.New(slog.DiscardHandler)}
		v.c, next.c = c, c
		m := &mover{c: c, next: next}
		if err := (*visitor)(v).Invalid(dazaar.Invalid{Code: code}); err == nil {
			t.Errorf("%s is no error", code)
		}
		if got := m.instead(); (got == next) != goesOn {
			t.Errorf("%s: it goes on: %v", code, got == next)
		}
		if err := c.because(ErrBusy); !goesOn && !fatal(err) || goesOn && fatal(err) {
			t.Errorf("%s: %v", code, err)
		}
	}
}
