package auth

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Owner is the user and group of a service, as numbers; the zero value is whoever runs this.
type Owner struct {
	UID, GID int
	set      bool
}

// OwnedBy returns the owner of these numbers.
func OwnedBy(uid, gid int) Owner { return Owner{uid, gid, true} }

// file is one of a fleet's directory.
type file struct {
	path string // below it
	data []byte
}

// tree is what is to be written below a directory.
type tree struct {
	dir    string
	owners map[string]Owner // by the first element of the path
	force  bool             // over what is there
	files  []file
}

func (t *tree) add(data []byte, elem ...string) {
	t.files = append(t.files, file{filepath.Join(elem...), data})
}

// addPair adds a certificate, its key and the CA's certificate, if there are any.
func (t *tree) addPair(ca *authority, p *pair, elem ...string) {
	if p == nil {
		return
	}
	in := func(name string) string { return filepath.Join(filepath.Join(elem...), name) }
	t.add(p.cert, in("cert.pem"))
	t.add(p.key, in("key.pem"))
	t.add(ca.pem, in("ca.pem"))
}

// write writes all of it: nothing, when a file is there already that must not be overwritten.
func (t *tree) write() error {
	if !t.force {
		for _, f := range t.files {
			path := filepath.Join(t.dir, f.path)
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s is there already: --force makes it anew, and what was made before is worth nothing then", path)
			}
		}
	}
	for _, f := range t.files {
		if err := t.writeOne(f); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) writeOne(f file) error {
	owner := t.owners[ownerOf(f.path)]
	path := filepath.Join(t.dir, f.path)
	for dir := filepath.Dir(f.path); dir != "."; dir = filepath.Dir(dir) {
		// From above, so that what is made is never open to others.
		if err := t.mkdir(dir, owner); err != nil {
			return err
		}
	}
	if t.force {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := writeNew(path, f.data); err != nil {
		return err
	}
	return owner.take(path)
}

// mkdir makes a directory below that of the fleet, and those above it.
func (t *tree) mkdir(dir string, owner Owner) error {
	if above := filepath.Dir(dir); above != "." {
		if err := t.mkdir(above, owner); err != nil {
			return err
		}
	}
	path := filepath.Join(t.dir, dir)
	err := os.Mkdir(path, 0o700)
	if err == nil {
		return owner.take(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// ownerOf says whose a file is: that of the directory's service. The server reads its configuration.
func ownerOf(path string) string {
	if path == confFile {
		return serverDir
	}
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(path) {
		path = dir
	}
	return path
}

func (o Owner) take(path string) error {
	if !o.set {
		return nil
	}
	return os.Chown(path, o.UID, o.GID)
}

func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// replace writes a file such that it is whole at any time. It keeps its mode and its
// owner; where there is none yet it gets mode.
func replace(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	var owner Owner
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		mode = info.Mode().Perm()
		if s, ok := info.Sys().(*syscall.Stat_t); ok && (int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
			owner = OwnedBy(int(s.Uid), int(s.Gid))
		}
	}
	// The directory may be a service's, and we may be root: nothing that it has put there is followed.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if owner.set {
		err = errors.Join(err, f.Chown(owner.UID, owner.GID))
	}
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// lock keeps others from changing a fleet's directory until unlock is called.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: somebody else is changing it: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
