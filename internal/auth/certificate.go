package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// A certificate that expires takes its firewall from the bus. Who is thrown out is revoked by key,
	// not by waiting.
	caLife   = 20 * 365 * 24 * time.Hour
	leafLife = 5 * 365 * 24 * time.Hour
	// backdated, for hosts whose clock is behind.
	backdated = time.Hour
)

// authority is the CA of one fleet: it signs the certificates of its servers, roles and
// firewalls, and nobody else's.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte // of cert
}

// pair is a certificate and its key, as files hold them.
type pair struct{ cert, key []byte }

func newAuthority(now time.Time) (*authority, *pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t, err := template("ctfleet CA", now, caLife)
	if err != nil {
		return nil, nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	p, err := sign(t, t, key, key)
	if err != nil {
		return nil, nil, err
	}
	a, err := parseAuthority(p.cert, p.key)
	return a, p, err
}

// readAuthority reads the CA in a fleet's directory.
func readAuthority(dir string) (*authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, "ca", "ca.pem"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, "ca", "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("%w (a certificate is needed: bring the key of the CA back for this)", err)
	}
	return parseAuthority(cert, key)
}

func parseAuthority(cert, key []byte) (*authority, error) {
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the CA: %w", err)
	}
	k, ok := p.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !p.Leaf.IsCA {
		return nil, errors.New("the CA: this is no certificate authority made by ctfleet auth init")
	}
	return &authority{p.Leaf, k, cert}, nil
}

// issue makes a certificate for a client, and for a server where it has hosts: names
// and addresses.
func (a *authority) issue(name string, hosts []string, now time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template(name, now, leafLife)
	if err != nil {
		return nil, err
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} // servers are clients of each other
	if len(hosts) > 0 {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return sign(t, a.cert, key, a.key)
}

func template(name string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"ctfleet"}, CommonName: name},
		NotBefore:    now.Add(-backdated), NotAfter: now.Add(life),
	}, nil
}

func sign(t, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, by)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}, nil
}
