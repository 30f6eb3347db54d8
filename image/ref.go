package image

import (
	"fmt"
	"regexp"
)

// names are those that OCI allows for org.opencontainers.image.ref.name, and skopeo takes.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*)*$`)

// checkName refuses names of images that others could not use.
func checkName(name string) error {
	if len(name) > 255 || !namePattern.MatchString(name) {
		return fmt.Errorf("name %.80q: letters and digits, joined by one of - . _ : @ + or /, at most 255: %w", name, ErrBadRef)
	}
	return nil
}
