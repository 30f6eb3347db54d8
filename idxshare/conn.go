package idxshare

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	"modernc.org/sqlite"
)

// conn is one connection of SQLite's driver, used without package database/sql: a row costs no allocation but those of its texts. It belongs to one
// goroutine at a time.
type conn struct {
	c      driver.Conn
	db     *sql.DB
	holder *sql.Conn // of c, which nobody else gets as long as it is held
	stmts  map[string]driver.Stmt
	named  []driver.NamedValue
}

// connect opens a database. The parameters are those of SQLite and of its driver.
func connect(path string, parameters url.Values) (*conn, error) {
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: parameters.Encode()}
	connector, err := sqlite.NewConnector(dsn.String())
	if err != nil {
		return nil, err
	}
	c := &conn{db: sql.OpenDB(connector), stmts: map[string]driver.Stmt{}}
	if c.holder, err = c.db.Conn(context.Background()); err == nil {
		err = c.holder.Raw(func(raw any) error {
			c.c = raw.(driver.Conn)
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(err, c.db.Close())
	}
	return c, nil
}

// limit sets one of SQLite's limits.
func (c *conn) limit(id, value int) error {
	_, err := sqlite.Limit(c.holder, id, value)
	return err
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.holder.Close(), c.db.Close())...)
}

// run executes statements that have no arguments and whose rows nobody wants.
func (c *conn) run(statements ...string) error {
	for _, s := range statements {
		if _, err := c.c.(driver.ExecerContext).ExecContext(context.Background(), s, nil); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (c *conn) stmt(ctx context.Context, text string) (driver.Stmt, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	s, err := c.c.(driver.ConnPrepareContext).PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	c.stmts[text] = s
	return s, nil
}

// bind makes arguments of values, which are valid until the next call.
func (c *conn) bind(args []driver.Value) []driver.NamedValue {
	c.named = c.named[:0]
	for i, v := range args {
		c.named = append(c.named, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.named
}

// exec executes a statement, which is kept for the next time.
func (c *conn) exec(text string, args ...driver.Value) error {
	s, err := c.stmt(context.Background(), text)
	if err == nil {
		_, err = s.(driver.StmtExecContext).ExecContext(context.Background(), c.bind(args))
	}
	return err
}

// query calls fn with each row. The row is valid until fn returns, but its texts and blobs stay.
func (c *conn) query(ctx context.Context, text string, args []driver.Value, fn func(row []driver.Value) error) (err error) {
	s, err := c.stmt(ctx, text)
	if err != nil {
		return err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, c.bind(args))
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil {
			err = e
		}
	}()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := fn(row); err != nil {
			return err
		}
	}
}
