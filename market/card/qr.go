package card

import (
	"bufio"
	"io"

	"rsc.io/qr"
)

// PrintQR prints the QR code of a link, or of other text, on a terminal: with half blocks, dark on light whatever the terminal's
// colours are, and with the margin that scanners want.
func PrintQR(w io.Writer, text string) error {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return err
	}
	const margin = 4
	out := bufio.NewWriter(w)
	for y := -margin; y < code.Size+margin; y += 2 {
		out.WriteString("\x1b[30;107m") //nolint:errcheck // Flush tells
		for x := -margin; x < code.Size+margin; x++ {
			switch top, bottom := code.Black(x, y), code.Black(x, y+1); {
			case top && bottom:
				out.WriteString("█") //nolint:errcheck // as above
			case top:
				out.WriteString("▀") //nolint:errcheck // as above
			case bottom:
				out.WriteString("▄") //nolint:errcheck // as above
			default:
				out.WriteByte(' ') //nolint:errcheck // as above
			}
		}
		out.WriteString("\x1b[0m\n") //nolint:errcheck // as above
	}
	return out.Flush()
}
