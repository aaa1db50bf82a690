package sensors

import "strings"

// units are the units of SenML: RFC 8428, section 12.1, and RFC 8798, with what was
// registered since.
const units = ` m kg g s A K cd mol Hz rad sr N Pa J W C V F Ohm S Wb T H Cel lm lx Bq Gy Sv kat m2 m3 l m/s m/s2 m3/s l/s W/m2 cd/m2 bit bit/s
 lat lon pH dB dBW Bspl count / % %RH %EL EL 1/s 1/min beat/min beats S/m B VA VAs var vars J/m kg/m3 deg NTU
 ms min h MHz kW kVA kvar Ah Wh kWh varh kvarh kVAh Wh/km KiB GB Mbit/s B/s MB/s mV mA dBm ug/m3 mm/h m/h ppm /100 /1000 hPa mm cm km km/h ppb
`

// KnownUnit tells whether a unit is one of SenML's; none, "", is.
func KnownUnit(unit string) bool {
	return unit == "" || !strings.ContainsAny(unit, " \n") && strings.Contains(strings.ReplaceAll(units, "\n", " "), " "+unit+" ")
}

// ValidName tells whether SenML takes a name (RFC 8428, section 4.5.1).
func ValidName(name string) bool {
	for i, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.ContainsRune("-:./_", c):
		default:
			return false
		}
	}
	return name != ""
}
