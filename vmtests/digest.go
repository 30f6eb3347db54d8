package vmtests

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
)

// FileDigest returns the SHA-256, in hexadecimal, of a file's first limit bytes (or of all it has), and their number.
func FileDigest(path string, limit int64) (digest string, sizeBytes int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, limit))
	return hex.EncodeToString(h.Sum(nil)), n, err
}
