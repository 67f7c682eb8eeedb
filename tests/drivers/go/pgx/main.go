// pgx over the list of checks: the extended protocol with a cache of prepared statements, batches, COPY in binary.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
	. "tour"
)

var background = context.Background()

func connect(change func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig("")
	Must(err)
	if change != nil {
		change(config)
	}
	return pgx.ConnectConfig(background, config)
}

func conn() *pgx.Conn {
	c, err := connect(nil)
	Must(err)
	return c
}

func with(name, value string) func(*pgx.ConnConfig) {
	return func(config *pgx.ConnConfig) { config.RuntimeParams[name] = value }
}

func exec(c *pgx.Conn, text string, arguments ...interface{}) {
	_, err := c.Exec(background, text, arguments...)
	Must(err)
}

func one(c *pgx.Conn, text string, arguments ...interface{}) interface{} {
	rows, err := c.Query(background, text, arguments...)
	Must(err)
	defer rows.Close()
	Equal(rows.Next(), true)
	values, err := rows.Values()
	Must(err)
	return values[0]
}

func refused(err error, state string) *pgconn.PgError {
	var told *pgconn.PgError
	if !errors.As(err, &told) {
		panic(fmt.Sprint("no error of the server: ", err))
	}
	Equal(told.Code, state)
	return told
}

func execError(c *pgx.Conn, text string, arguments ...interface{}) error {
	_, err := c.Exec(background, text, arguments...)
	return err
}

func connectError(change func(*pgx.ConnConfig)) error {
	_, err := connect(change)
	return err
}

func size(c *pgx.Conn, text string) int {
	rows, err := c.Query(background, text)
	Must(err)
	defer rows.Close()
	total := 0
	for rows.Next() {
		var i int
		var body string
		Must(rows.Scan(&i, &body))
		total += len(body)
	}
	Must(rows.Err())
	return total
}

func main() {
	Driver("pgx", "v4 of Debian (golang-github-jackc-pgx-v4-dev)")
	c := conn()
	Check("connect", func() { Equal(one(c, "SELECT 1"), 1) })
	NotApplicable("channel_binding", "pgx v4 speaks SCRAM-SHA-256 without channel binding")
	Check("wrong_authority", func() {
		config, err := pgx.ParseConfig("sslrootcert=" + os.Getenv("PGOTHERCERT"))
		Must(err)
		_, err = pgx.ConnectConfig(background, config)
		Equal(strings.Contains(fmt.Sprint(err), "unknown authority"), true)
	})
	Check("no_tls", func() { refused(connectError(func(config *pgx.ConnConfig) { config.TLSConfig = nil }), "28000") })
	Check("wrong_password", func() { refused(connectError(func(config *pgx.ConnConfig) { config.Password = "wrong" }), "28P01") })
	Check("unknown_database", func() { refused(connectError(func(config *pgx.ConnConfig) { config.Database = "postgres" }), "3D000") })
	Check("startup_options", func() {
		other, err := connect(func(config *pgx.ConnConfig) {
			config.RuntimeParams["timezone"] = "Asia/Tokyo"
			config.RuntimeParams["options"] = "-c statement_timeout=61s"
		})
		Must(err)
		Equal([]interface{}{one(other, "SHOW timezone"), one(other, "SHOW statement_timeout")}, []string{"Asia/Tokyo", "61s"})
	})
	Check("types", func() {
		types(c)
		simple, err := connect(func(config *pgx.ConnConfig) { config.PreferSimpleProtocol = true })
		Must(err)
		Equal(one(simple, "SELECT $1::text || $2::int", "Þóra 'x' \\", 7), "Þóra 'x' \\7")
	})
	Check("wide_rows", func() { Equal(size(c, Wide), 5000000) })
	Check("large_result", func() {
		Equal(size(c, Stream), 20000000)
		// Given up in the middle: the driver reads the rest away.
		rows, err := c.Query(background, "SELECT id FROM dl_resolved.people")
		Must(err)
		rows.Next()
		rows.Close()
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("prepared", func() {
		conns := []*pgx.Conn{conn(), conn(), conn()}
		for _, each := range conns {
			_, err := each.Prepare(background, "by id", "SELECT person_id FROM dl_resolved.people WHERE id = $1")
			Must(err)
		}
		for i := 1; i <= 12; i++ {
			exec(conns[i%3], "BEGIN")
			for _, each := range conns {
				Equal(one(each, "by id", i), fmt.Sprintf("pe_%06d", i))
				Equal(one(each, fmt.Sprint("SELECT $1::int + ", i), i), 2*i)
			}
			exec(conns[i%3], "COMMIT")
		}
		Must(conns[0].Deallocate(background, "by id"))
	})
	Check("prepared_redefined", func() {
		exec(c, "CREATE TABLE "+Prefix+"_redefined AS SELECT 1 AS a")
		text := "SELECT * FROM " + Prefix + "_redefined"
		Equal(one(c, text), 1)
		exec(conn(), "ALTER TABLE "+Prefix+"_redefined ADD COLUMN b int")
		// The cache forgets the statement with its first error.
		rows, err := c.Query(background, text)
		Must(err)
		rows.Next()
		rows.Close()
		if rows.Err() != nil {
			refused(rows.Err(), "0A000")
		}
		Equal(one(c, text), 1)
	})
	Check("batch", func() {
		batch := &pgx.Batch{}
		for i := 0; i < 200; i++ {
			batch.Queue("SELECT $1::int", i)
		}
		results := c.SendBatch(background, batch)
		for i := 0; i < 200; i++ {
			var got int
			Must(results.QueryRow().Scan(&got))
			Equal(got, i)
		}
		Must(results.Close())
	})
	Check("insert_many", func() {
		exec(c, "CREATE TABLE "+Prefix+"_keys (id int GENERATED ALWAYS AS IDENTITY, body text)")
		rows, err := c.Query(background, "INSERT INTO "+Prefix+"_keys (body) VALUES ($1), ($2), ($3) RETURNING id", "a", "b", nil)
		Must(err)
		ids := []int{}
		for rows.Next() {
			var id int
			Must(rows.Scan(&id))
			ids = append(ids, id)
		}
		Equal(ids, []int{1, 2, 3})
	})
	Check("empty", func() {
		for _, text := range []string{"", "-- nothing", ";"} {
			exec(c, text)
		}
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("notice", func() {
		seen := ""
		other, err := connect(func(config *pgx.ConnConfig) {
			config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { seen = notice.Severity }
		})
		Must(err)
		exec(other, "DROP TABLE IF EXISTS "+Prefix+"_nothing")
		Equal(seen, "NOTICE")
	})
	Check("refusal", func() {
		for _, err := range []error{execError(c, ForeignWrite), execError(c, ForeignWrite+" WHERE person_id = $1", "x")} {
			told := refused(err, "42501")
			Equal(told.Message, ForeignWriteMessage)
			Equal(strings.Contains(told.Detail, "Rule target.") && strings.Contains(told.Hint, "storage"), true)
			Equal(told.Position, 13)
		}
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("server_error", func() {
		exec(c, "CREATE TABLE "+Prefix+"_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
		exec(c, "INSERT INTO "+Prefix+"_unique VALUES (1)")
		Equal(refused(execError(c, "INSERT INTO "+Prefix+"_unique VALUES ($1)", 1), "23505").ConstraintName, "one_of_a_kind")
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("listen", func() {
		Equal(strings.Contains(refused(execError(c, "LISTEN a"), "42501").Hint, "Poll a table"), true)
	})
	Check("transaction", func() {
		exec(c, "CREATE TABLE "+Prefix+"_transaction (id int)")
		insert := "INSERT INTO " + Prefix + "_transaction VALUES ($1)"
		Must(c.BeginTxFunc(background, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
			_, err := tx.Exec(background, insert, 1)
			return err
		}))
		tx, err := c.Begin(background)
		Must(err)
		_, err = tx.Exec(background, insert, 2)
		Must(err)
		Must(tx.Rollback(background))
		refused(c.BeginTxFunc(background, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			_, err := tx.Exec(background, insert, 3)
			return err
		}), "25006")
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction"), 1)
	})
	Check("refused_in_transaction", func() {
		tx, err := c.Begin(background)
		Must(err)
		_, err = tx.Exec(background, "INSERT INTO "+Prefix+"_transaction VALUES (1000)")
		Must(err)
		_, err = tx.Exec(background, ForeignWrite)
		refused(err, "42501")
		_, err = tx.Exec(background, "SELECT 1")
		refused(err, "25P02")
		Equal(errors.Is(tx.Commit(background), pgx.ErrTxCommitRollback), true)
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction"), 1)
	})
	Check("refused_in_savepoint", func() {
		tx, err := c.Begin(background)
		Must(err)
		inner, err := tx.Begin(background)
		Must(err)
		_, err = inner.Exec(background, "CREATE TABLE unqualified (id int)")
		refused(err, "42501")
		Must(inner.Rollback(background))
		_, err = tx.Exec(background, "INSERT INTO "+Prefix+"_transaction VALUES (3)")
		Must(err)
		Must(tx.Commit(background))
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction"), 2)
	})
	Check("refused_in_batch", func() {
		for _, middle := range []struct{ text, state string }{{ForeignWrite, "42501"}, {"SELECT 1/0", "22012"}} {
			batch := &pgx.Batch{}
			batch.Queue("INSERT INTO "+Prefix+"_transaction VALUES ($1)", 2000)
			batch.Queue(middle.text)
			batch.Queue("SELECT $1::int", 2)
			refused(c.SendBatch(background, batch).Close(), middle.state)
			Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction WHERE id = 2000"), 0)
		}
		_, err := c.PgConn().Exec(background, "BEGIN; "+ForeignWrite+"; COMMIT").ReadAll()
		refused(err, "42501")
		exec(c, "ROLLBACK")
	})
	Check("copy_in", func() {
		exec(c, "CREATE TABLE "+Prefix+"_copy (id int, body text)")
		rows := [][]interface{}{}
		for i := 0; i < 10000; i++ {
			rows = append(rows, []interface{}{i, "東京"})
		}
		count, err := c.CopyFrom(background, strings.Split(Prefix+"_copy", "."), []string{"id", "body"}, pgx.CopyFromRows(rows))
		Must(err)
		Equal(count, 10000)
		tag, err := c.PgConn().CopyFrom(background, strings.NewReader(strings.Repeat("1\tx\n", 10000)), "COPY "+Prefix+"_copy FROM STDIN")
		Must(err)
		Equal(tag.RowsAffected(), 10000)
	})
	Check("copy_out", func() {
		var out bytes.Buffer
		_, err := c.PgConn().CopyTo(background, &out, "COPY "+Prefix+"_copy TO STDOUT")
		Must(err)
		Equal(bytes.Count(out.Bytes(), []byte("\n")), 20000)
	})
	Check("copy_broken", func() {
		_, err := c.PgConn().CopyFrom(background, strings.NewReader("no number\tx\n"), "COPY "+Prefix+"_copy FROM STDIN")
		refused(err, "22P02")
		_, err = c.PgConn().CopyFrom(background, broken{}, "COPY "+Prefix+"_copy FROM STDIN")
		Equal(err != nil, true)
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_copy"), 20000)
	})
	Check("cancel", func() {
		time.AfterFunc(300*time.Millisecond, func() { Must(c.PgConn().CancelRequest(background)) })
		refused(execError(c, Long), "57014")
		Equal(one(c, "SELECT 1"), 1)
		// The driver's own end of patience closes the connection.
		bounded, stop := context.WithTimeout(background, 300*time.Millisecond)
		defer stop()
		impatient := conn()
		_, err := impatient.Exec(bounded, Long)
		Equal(err != nil && impatient.IsClosed(), true)
	})
	Check("timeout", func() {
		other, err := connect(with("statement_timeout", "300"))
		Must(err)
		refused(execError(other, Long), "57014")
	})
	Check("settings", func() {
		conns := []*pgx.Conn{conn(), conn(), conn()}
		for i, each := range conns {
			exec(each, fmt.Sprint("SET extra_float_digits = ", i))
		}
		for round := 0; round < 15; round++ {
			Equal(one(conns[round%3], "SHOW extra_float_digits"), round%3)
		}
	})
	Check("introspection", func() {
		described, err := c.Prepare(background, "", "SELECT id, salary, skills FROM dl_resolved.people WHERE id = $1")
		Must(err)
		Equal(fmt.Sprint(described.ParamOIDs, described.Fields[1].DataTypeOID, string(described.Fields[2].Name)), "[20] 3904skills")
	})
	Check("pool", func() { pool() })
	Check("rotation", func() {
		password := Rotate()
		fresh, err := connect(func(config *pgx.ConnConfig) { config.Password = password })
		Must(err)
		Equal(one(fresh, "SELECT 1"), 1)
		refused(connectError(nil), "28P01")
		Equal(one(c, "SELECT count(*) FROM dl_resolved.people"), People)
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("given up") }

func types(c *pgx.Conn) {
	exec(c, "CREATE TABLE "+Prefix+"_types (a boolean, b smallint, c bigint, d double precision, e text, f text, g bytea, h timestamptz, "+
		"i int[], j text[], k jsonb, l uuid, m numeric)")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	when := time.Date(2024, 3, 31, 1, 30, 0, 1000, time.UTC)
	text := "Þóra 東京 🐘 ' \" \\ \n\t $1"
	insert := "INSERT INTO " + Prefix + "_types VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
	exec(c, insert, true, int16(-32768), int64(math.MinInt64), math.Inf(1), text, "", every, when, []int32{1, 2, 3},
		[]string{"a,b", "q\"uote", "", "NULL"}, map[string]interface{}{"a": []interface{}{1.5, nil, "ü"}}, "00112233-4455-6677-8899-aabbccddeeff",
		"-12345678901234567890.0123456789")
	exec(c, insert, make([]interface{}, 13)...)
	var (
		a          bool
		b          int16
		cc         int64
		d          float64
		e, f, m, l string
		g          []byte
		h          time.Time
		i          []int32
		j          []string
		k          map[string]interface{}
		nothing    *string
	)
	selected := "SELECT a, b, c, d, e, f, g, h, i, j, k, l::text, m::text FROM " + Prefix + "_types WHERE a"
	Must(c.QueryRow(background, selected).Scan(&a, &b, &cc, &d, &e, &f, &g, &h, &i, &j, &k, &l, &m))
	Equal([]interface{}{a, b, cc, d, e, f, g, h.Equal(when), i, j, k, l, m},
		[]interface{}{true, -32768, int64(math.MinInt64), math.Inf(1), text, "", every, true, []int32{1, 2, 3}, []string{"a,b", "q\"uote", "", "NULL"},
			map[string]interface{}{"a": []interface{}{1.5, nil, "ü"}}, "00112233-4455-6677-8899-aabbccddeeff", "-12345678901234567890.0123456789"})
	Must(c.QueryRow(background, "SELECT e FROM "+Prefix+"_types WHERE a IS NULL").Scan(&nothing))
	Equal(nothing == nil, true)
}

func pool() {
	pool, err := pgxpool.Connect(background, "pool_max_conns=4")
	Must(err)
	defer pool.Close()
	var group sync.WaitGroup
	wrong := make(chan error, 100)
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			var got int
			if err := pool.QueryRow(background, "SELECT $1::int", i).Scan(&got); err != nil || got != i {
				wrong <- fmt.Errorf("%d: %v %v", i, got, err)
			}
		}(i)
	}
	group.Wait()
	close(wrong)
	Must(<-wrong)
}
