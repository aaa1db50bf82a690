package configs

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// rawMQTT is a broker as it is written.
type rawMQTT struct {
	Broker       string `yaml:"broker"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	CA           string `yaml:"ca"`
	Prefix       string `yaml:"prefix"` // of monitor.mqtt
}

// beside returns the path of a file that is named in the configuration.
func (r *reader) beside(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(r.file), name)
}

// broker reads where a broker is, and who may use it.
func (r *reader) broker(path string, in *rawMQTT) *MQTT {
	if in == nil {
		return nil
	}
	m := &MQTT{Broker: in.Broker, Username: in.Username, CA: r.beside(in.CA)}
	u, err := url.Parse(in.Broker)
	if strings.Contains(in.Broker, "@") {
		r.fail(path+".broker", "has a user or a password in it: write username, and password_file")
	} else if err != nil || u.Host == "" || u.Port() == "" || !slices.Contains([]string{"tcp", "ssl", "ws", "wss"}, u.Scheme) {
		r.fail(path+".broker", "%q is not a broker: write tcp://127.0.0.1:1883, or ssl://broker.example:8883", in.Broker)
	}
	if in.PasswordFile != "" {
		name := r.beside(in.PasswordFile)
		r.secret(path+".password_file", name)
		b, _ := os.ReadFile(name) //nolint:errcheck // that was said
		m.Password = strings.TrimRight(string(b), "\r\n")
		if m.Username == "" {
			r.fail(path+".password_file", "is the password of nobody: add a username")
		}
	}
	if m.CA != "" {
		if _, err := os.Stat(m.CA); err != nil {
			r.fail(path+".ca", "is the name of a file with certificates, beside this one or absolute: %v", errors.Unwrap(err))
		}
	}
	return m
}
