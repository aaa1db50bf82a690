package lnd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"dazaar-edge/payment"
)

// client asks a node by its REST interface.
type client struct {
	base, cert, macaroon string

	mu     sync.Mutex
	http   *http.Client // guarded by mu, like all below; nil until the files are read
	secret string       // the macaroon, in hex
}

// newClient returns a client of the node at a URL. The node is not asked.
func newClient(address, cert, macaroon string) (*client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("lnd: %q is not a node's URL: https://HOST:8080", address)
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, errors.New("lnd: http is for this host alone: anybody on the way could say that an invoice is paid; https://HOST:8080")
	}
	c := &client{base: strings.TrimSuffix(address, "/"), cert: cert, macaroon: macaroon}
	_, _, err = c.open()
	return c, err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// open returns the client and the macaroon, and reads the files if need be.
func (c *client) open() (*http.Client, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil {
		return c.http, c.secret, nil
	}
	b, err := os.ReadFile(c.macaroon)
	if err != nil {
		return nil, "", fmt.Errorf("lnd: macaroon: %w", err)
	}
	c.secret = hex.EncodeToString(b)
	if text := strings.TrimSpace(string(b)); isHex(text) {
		c.secret = text
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}
	if c.cert != "" {
		pem, err := os.ReadFile(c.cert)
		if err != nil {
			return nil, "", fmt.Errorf("lnd: cert: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, "", fmt.Errorf("lnd: cert: %s has no certificate in PEM form: it is the node's tls.cert", c.cert)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	// A redirection would carry the macaroon elsewhere.
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c.http, c.secret, nil
}

func isHex(text string) bool {
	_, err := hex.DecodeString(text)
	return text != "" && err == nil
}

// reopen has the files read again by the next call.
func (c *client) reopen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil {
		c.http.CloseIdleConnections()
		c.http = nil
	}
}

// nodeError is what the node says when it does not do it.
type nodeError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`

	status int // of HTTP
}

// codeNotFound is gRPC's code that matters.
const codeNotFound = 5

// Error implements error.
func (e *nodeError) Error() string {
	return fmt.Sprintf("lnd: HTTP status %d, code %d: %.200q", e.status, e.Code, e.Message)
}

// err returns what an answer means.
func (e *nodeError) err(status int) error {
	e.status = status
	switch {
	case e.Code == codeNotFound:
		return fmt.Errorf("%w: %w", payment.ErrUnknown, e)
	case strings.Contains(e.Message, "permission denied"), strings.Contains(e.Message, "macaroon"), strings.Contains(e.Message, "verification failed"):
		return fmt.Errorf("%w: %s (%w)", ErrDenied, e.Message, payment.ErrUnpayable)
	case strings.Contains(e.Message, "wallet locked"), strings.Contains(e.Message, "starting up"), strings.Contains(e.Message, "not yet ready"):
		return fmt.Errorf("%w: %w", payment.ErrUnpayable, e)
	}
	return e
}

// request sends a request and returns the answer, if it is one. What the node does not
// accept of the files is read again, once.
func (c *client) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := c.once(ctx, method, path, body)
		var unknown x509.UnknownAuthorityError
		var host x509.HostnameError
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
			err = fmt.Errorf("%w: %w (%w)", ErrCertificate, err, payment.ErrUnpayable)
		case errors.Is(err, ErrDenied):
		default:
			return resp, err
		}
		c.reopen()
		if try > 0 {
			return nil, err
		}
	}
}

func (c *client) once(ctx context.Context, method, path string, body any) (*http.Response, error) {
	hc, secret, err := c.open()
	if err != nil {
		return nil, err
	}
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Grpc-Metadata-macaroon", secret)
	resp, err := hc.Do(r)
	if err != nil {
		return nil, fmt.Errorf("lnd: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e nodeError
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, fmt.Errorf("lnd: %w", err)
	}
	var wrapped struct{ Error *nodeError }
	if json.Unmarshal(b, &wrapped) == nil && wrapped.Error != nil {
		e = *wrapped.Error
	} else if json.Unmarshal(b, &e) != nil || e.Message == "" { // somebody on the way says it
		return nil, fmt.Errorf("lnd: HTTP status %s: %.200q", resp.Status, b)
	}
	return nil, e.err(resp.StatusCode)
}

// call is a request with an answer of one piece.
func (c *client) call(ctx context.Context, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	resp, err := c.request(ctx, method, path, body)
	return decode(resp, path, out, err)
}

// decode reads an answer of one piece, if there is one.
func decode(resp *http.Response, path string, out any, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err == nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		return fmt.Errorf("lnd: %s: %w", path, err)
	}
	return nil
}
