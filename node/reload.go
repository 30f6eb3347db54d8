package node

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
)

// reloaded are the keys that [Daemon.Reload] takes. Certificates and lists of peers are read again by themselves, when their files change.
var reloaded = []string{"cache.memory", "log_level"}

// Reload takes from cfg what can change while devices are served: how much memory the cache may take, and what is logged; and makes what has been declared
// in the meantime. The log names what else has changed,
// which is for the next start. Where cfg cannot be used nothing of it is.
func (d *Daemon) Reload(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fail(CodeBadRequest, "correct the configuration", "check configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	if _, err := d.SetCache(ctx, CacheSetRequest{MemoryBytes: int64(*cfg.Cache.Memory)}); err != nil {
		return err
	}
	if d.cfg.Level != nil {
		d.cfg.Level.Set(cfg.level())
	}
	d.log.Info("configuration read again", "taken", reloaded)
	d.makeDeclared()
	later := slices.DeleteFunc(differing("", reflect.ValueOf(d.cfg), reflect.ValueOf(cfg)), func(key string) bool { return slices.Contains(reloaded, key) })
	if len(later) > 0 {
		d.log.Warn("what else has changed in the configuration is used when the daemon is started again", "keys", later)
	}
	return nil
}

// differing returns the keys whose values differ in two configurations, or sections of them, as they are written in the file.
func differing(section string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		key, x, y := a.Type().Field(i).Tag.Get("toml"), a.Field(i), b.Field(i)
		switch {
		case key == "-":
		case x.Kind() == reflect.Struct:
			keys = append(keys, differing(section+key+".", x, y)...)
		case !reflect.DeepEqual(x.Interface(), y.Interface()):
			keys = append(keys, section+key)
		}
	}
	return keys
}

// level is what is logged from; it is valid where c is.
func (c Config) level() slog.Level {
	var level slog.Level
	if level.UnmarshalText([]byte(c.LogLevel)) != nil {
		return slog.LevelInfo
	}
	return level
}
