//go:build e2e

package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate writes NAME.pem and NAME.key: a certificate of this host that signs itself.
func (h *house) certificate(name string) {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		h.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	h.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

// TestTLS: edge check and edge run speak TLS with a broker whose certificate is its own,
// and that wants a password; check says what is wrong if something is.
func TestTLS(t *testing.T) {
	h := newHouse(t)
	edge := h.build()
	h.close()
	h.certificate("broker")
	h.certificate("another")
	if out, err := exec.Command("mosquitto_passwd", "-c", "-b", filepath.Join(h.dir, "users"), "edge", "hunter2").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	secure := freePort(t)
	h.write("mosquitto.conf", fmt.Sprintf("per_listener_settings true\nuser root\nlistener %[1]s 127.0.0.1\nallow_anonymous true\n"+
		"listener %[2]s 127.0.0.1\npassword_file %[3]s/users\ncertfile %[3]s/broker.pem\nkeyfile %[3]s/broker.key\n", h.port, secure, h.dir))
	h.open()
	check := func(ca, password string) (string, error) {
		h.write("pass", password+"\n")
		if err := exec.Command("chmod", "600", filepath.Join(h.dir, "pass")).Run(); err != nil {
			t.Fatal(err)
		}
		h.write("edge.yaml", fmt.Sprintf(`device: {name: house, clock: system}
storage: {path: data, max_size: 32MiB}
mqtt: {broker: "ssl://127.0.0.1:%s", ca: %s.pem, username: edge, password_file: pass}
feeds: [{name: air, price: free, tcp: "127.0.0.1:0", sensors: [{name: street, driver: mqtt, topic: "zigbee2mqtt/+", fields: {n: count}}]}]
`, secure, ca))
		cmd := exec.Command(edge, "check", "-c", "edge.yaml")
		cmd.Dir = h.dir
		b, err := cmd.CombinedOutput()
		if strings.Contains(string(b), "hunter") {
			t.Errorf("it says the password: %s", b)
		}
		return string(b), err
	}
	if out, err := check("another", "hunter2"); err == nil || !strings.Contains(out, "FAIL  air/street") || !strings.Contains(out, "x509: ") {
		t.Errorf("with a certificate that is not the broker's: %v: %s", err, out)
	}
	if out, err := check("broker", "hunter3"); err == nil || !strings.Contains(out, "FAIL  air/street") || !strings.Contains(out, "uthorized") {
		t.Errorf("with a wrong password: %v: %s", err, out)
	}
	if out, err := check("broker", "hunter2"); err != nil || !strings.Contains(out, "warn  air/street: nothing came meanwhile") {
		t.Errorf("%v: %s", err, out)
	}
	s := h.start(edge)
	until(t, func() bool { return strings.Contains(s.said(), "connected to the broker") })
	h.say(0, 10)
	until(t, func() bool { return len(h.numbers(s, edge)) == 10 })
	s.stop()
	if strings.Contains(s.said(), "hunter2") {
		t.Error("it says the password")
	}
}
