package auth

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Renew gives the server and the services certificates that are good for as long as new
// ones are, and the server's the further names of hosts. Keys on the bus stay what they are. It returns
// the directories that have one now. Firewalls have theirs with them: for those, [AddFirewall] with Force.
func Renew(dir string, hosts []string) (renewed []string, err error) {
	err = change(dir, func(dir string, reg *Register) error {
		if !reg.TLS {
			return errors.New("this fleet has no certificates (--no-tls)")
		}
		ca, err := readAuthority(dir)
		if err != nil {
			return err
		}
		for _, service := range Services() {
			at := filepath.Join(dir, service)
			old, err := readCertificate(filepath.Join(at, "cert.pem"))
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was taken elsewhere
			}
			if err != nil {
				return err
			}
			var names []string
			if service == serverDir {
				names = append(names, old.DNSNames...)
				for _, ip := range old.IPAddresses {
					names = append(names, ip.String())
				}
				for _, h := range hosts {
					if !slices.Contains(names, h) {
						names = append(names, h)
					}
				}
			}
			p, err := ca.issue(old.Subject.CommonName, names, time.Now())
			if err != nil {
				return err
			}
			// A server that reads them in between finds a key that does not fit, and goes on with what it has.
			if err := errors.Join(replace(filepath.Join(at, "key.pem"), p.key, 0o600), replace(filepath.Join(at, "cert.pem"), p.cert, 0o600)); err != nil {
				return err
			}
			renewed = append(renewed, at)
		}
		return nil
	})
	return renewed, err
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: this is no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}
