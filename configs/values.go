package configs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// duration reads a time like 10s, 1h30m or 7d.
func (r *reader) duration(path, text string, missing, least time.Duration) time.Duration {
	if text == "" {
		return missing
	}
	unit := text
	factor := time.Duration(1)
	if n, ok := strings.CutSuffix(text, "d"); ok {
		unit, factor = n+"h", 24
	}
	d, err := time.ParseDuration(unit)
	if err != nil || d < 0 || d > math.MaxInt64/factor {
		r.fail(path, "%q is not a time: write 500ms, 10s, 5m, 2h or 30d", text)
		return missing
	}
	if d *= factor; d < least {
		r.fail(path, "%s is too short: at least %s", text, least)
	}
	return d
}

// sizeUnits from the longest suffix to the shortest.
var sizeUnits = [...]struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// size reads a number of bytes like 4GiB.
func (r *reader) size(path, text string, missing, least int64) int64 {
	if text == "" {
		return missing
	}
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(n >= 0 && n*u.bytes < math.MaxInt64/2) {
			break
		}
		if int64(n*u.bytes) < least {
			r.fail(path, "%s is too small: at least %d bytes", text, least)
		}
		return int64(n * u.bytes)
	}
	r.fail(path, "%q is not a size: write 512KiB, 64MiB or 4GiB", text)
	return missing
}

// share reads a percentage of total.
func (r *reader) share(path, text string, total int64) int64 {
	number, ok := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || !(n > 0 && n <= 100) {
		r.fail(path, "%q is not a share: write 50%%", text)
		return 0
	}
	return int64(float64(total) * n / 100)
}

// rateUnits from the longest suffix to the shortest, in bytes per second.
var rateUnits = [...]struct {
	suffix string
	bytes  float64
}{{"kbit/s", 1e3 / 8}, {"Mbit/s", 1e6 / 8}, {"Gbit/s", 1e9 / 8}}

// rate reads a rate like 2Mbit/s, in bytes per second; "none" is 0.
func (r *reader) rate(path, text string, missing float64) float64 {
	if text == "" {
		return missing
	}
	n, err := ParseRate(text)
	if err != nil {
		r.fail(path, "%v", err)
	}
	return n
}

// ParseRate reads a rate like 2Mbit/s, in bytes per second; "none" is 0.
func ParseRate(text string) (float64, error) {
	if text == "none" {
		return 0, nil
	}
	for _, u := range rateUnits {
		if number, ok := strings.CutSuffix(text, u.suffix); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil || !(n > 0 && n < 1e6) {
				break
			}
			if n*u.bytes < minRate {
				return 0, fmt.Errorf("%s is too little to sell anything: at least 8kbit/s", text)
			}
			return n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("%q is not a rate: write 512kbit/s, 2Mbit/s or none", text)
}

// suggest returns the known key that is nearest to a wrong one.
func suggest(key string) (best string) {
	limit := 1 + len(key)/3
	for _, k := range keyNames {
		if d := distance(key, k); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

// distance is the edit distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
