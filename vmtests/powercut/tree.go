package powercut

import (
	"os"
	"path/filepath"
	"slices"
)

// ReadTree reads all regular files that lie directly in dir, in the order of their names.
func ReadTree(dir string) ([]Found, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []Found
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f := Found{Name: e.Name()}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			f.Err = err.Error()
		}
		f.Size = int64(len(text))
		f.ID, f.Valid = Recognise(text)
		found = append(found, f)
	}
	slices.SortFunc(found, byName)
	return found, nil
}
