package sensors

import (
	"slices"
	"testing"
	"time"
)

// TestJudge: each limit by itself, and what the source said stays.
func TestJudge(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	j := Judge{Limits: map[string]Limits{"t": {Min: f(-40), Max: f(60), Jump: f(5), Flat: time.Minute}}}
	for i, c := range []struct {
		at    time.Duration
		value any
		had   []string
		want  []string
	}{
		{0, 20., nil, nil}, {10 * time.Second, 24., nil, nil}, {20 * time.Second, 30., nil, []string{Jump}}, {30 * time.Second, 30., nil, nil},
		{70 * time.Second, 30., nil, nil}, {80 * time.Second, 30., nil, []string{Flatline}}, {85 * time.Second, 30., []string{"simulated"}, []string{"simulated", Flatline}},
		{90 * time.Second, 31., nil, nil}, {100 * time.Second, 61., nil, []string{Range, Jump}}, {110 * time.Second, 60.5, []string{Range}, []string{Range}},
		{120 * time.Second, "open", nil, nil}, {130 * time.Second, true, nil, nil},
	} {
		r := []Reading{{Name: "t", Value: c.value, Quality: c.had}, {Name: "other", Value: 1e9}}
		j.Look(c.at, r)
		if !slices.Equal(r[0].Quality, c.want) || r[1].Quality != nil {
			t.Errorf("%d: %v is %q, want %q", i, c.value, r[0].Quality, c.want)
		}
	}
	wild := []Reading{{Name: "kitchen/t", Value: 99.}, {Name: "t/kitchen", Value: 99.}}
	if j.Look(0, wild); !slices.Equal(wild[0].Quality, []string{Range}) || wild[1].Quality != nil {
		t.Errorf("%+v", wild)
	}
	new(Judge).Look(0, []Reading{{Name: "t", Value: 1.}})
}
