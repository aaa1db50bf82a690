package sensors

import "testing"

func TestKnownUnit(t *testing.T) {
	for unit, want := range map[string]bool{
		"": true, "Cel": true, "%RH": true, "/": true, "ug/m3": true, "hPa": true, "m": true, "km/h": true, "ppb": true,
		"C°": false, "celsius": false, " ": false, "m kg": false, "1": false, "\n": false, "e": false,
	} {
		if KnownUnit(unit) != want {
			t.Errorf("%q: %v", unit, !want)
		}
	}
}
