// lib/pq with database/sql over the list of checks.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
	. "tour"
)

var background = context.Background()

// Opens a pool whose parameters are the environment's (libpq's names) with the changes given.
func open(changes string) *sql.DB {
	db, err := sql.Open("postgres", changes)
	Must(err)
	return db
}

func conn(changes string) *sql.Conn {
	c, err := open(changes).Conn(background)
	Must(err)
	return c
}

func exec(c *sql.Conn, text string, arguments ...interface{}) {
	_, err := c.ExecContext(background, text, arguments...)
	Must(err)
}

func one(c *sql.Conn, text string, arguments ...interface{}) string {
	var value string
	Must(c.QueryRowContext(background, text, arguments...).Scan(&value))
	return value
}

// The server's error that must come.
func refused(err error, state string) *pq.Error {
	told, ok := err.(*pq.Error)
	if !ok {
		panic(fmt.Sprint("no error of the server: ", err))
	}
	Equal(told.Code, state)
	return told
}

func connecting(changes string) error { return open(changes).Ping() }

func size(rows *sql.Rows, err error) int {
	Must(err)
	defer rows.Close()
	total := 0
	for rows.Next() {
		var i int
		var text string
		Must(rows.Scan(&i, &text))
		total += len(text)
	}
	Must(rows.Err())
	return total
}

func main() {
	Driver("lib/pq", "of Debian (golang-github-lib-pq-dev)")
	c := conn("")
	Check("connect", func() { Equal(one(c, "SELECT 1"), 1) })
	NotApplicable("channel_binding", "lib/pq speaks SCRAM-SHA-256 without channel binding")
	Check("wrong_authority", func() {
		Equal(strings.Contains(fmt.Sprint(connecting("sslrootcert="+os.Getenv("PGOTHERCERT"))), "certificate signed by unknown authority"), true)
	})
	Check("no_tls", func() { refused(connecting("sslmode=disable"), "28000") })
	Check("wrong_password", func() { refused(connecting("password=wrong"), "28P01") })
	Check("unknown_database", func() { refused(connecting("dbname=postgres"), "3D000") })
	Check("startup_options", func() {
		other := conn("application_name=tour timezone=Asia/Tokyo extra_float_digits=2 options='-c statement_timeout=61s'")
		Equal(one(other, "SHOW timezone")+one(other, "SHOW statement_timeout")+one(other, "SHOW extra_float_digits"), "Asia/Tokyo61s2")
	})
	Check("types", func() { types(c); types(conn("binary_parameters=yes")) })
	Check("wide_rows", func() { Equal(size(c.QueryContext(background, Wide)), 5000000) })
	Check("large_result", func() {
		Equal(size(c.QueryContext(background, Stream)), 20000000)
		tx, err := c.BeginTx(background, nil)
		Must(err)
		_, err = tx.Exec("DECLARE stream CURSOR FOR " + Stream)
		Must(err)
		total := 0
		for part := -1; part != 0; total += part {
			part = size(tx.Query("FETCH 3000 FROM stream"))
		}
		Equal(total, 20000000)
		Must(tx.Commit())
	})
	Check("prepared", func() {
		conns, statements := []*sql.Conn{conn(""), conn(""), conn("")}, []*sql.Stmt{}
		for _, each := range conns {
			statement, err := each.PrepareContext(background, "SELECT person_id FROM dl_resolved.people WHERE id = $1")
			Must(err)
			statements = append(statements, statement)
		}
		for i := 1; i <= 12; i++ {
			exec(conns[i%3], "BEGIN")
			for _, statement := range statements {
				var id string
				Must(statement.QueryRow(i).Scan(&id))
				Equal(id, fmt.Sprintf("pe_%06d", i))
			}
			exec(conns[i%3], "COMMIT")
		}
		for _, statement := range statements {
			Must(statement.Close())
		}
	})
	Check("prepared_redefined", func() {
		exec(c, "CREATE TABLE "+Prefix+"_redefined AS SELECT 1 AS a")
		statement, err := c.PrepareContext(background, "SELECT * FROM "+Prefix+"_redefined")
		Must(err)
		var a int
		Must(statement.QueryRow().Scan(&a))
		exec(conn(""), "ALTER TABLE "+Prefix+"_redefined ADD COLUMN b int")
		// Refused by the server, or healed by the gate: then it is the driver that finds a column more.
		_ = statement.QueryRow().Scan(&a)
		var b sql.NullInt64
		Must(c.QueryRowContext(background, "SELECT * FROM "+Prefix+"_redefined").Scan(&a, &b))
	})
	Check("batch", func() {
		exec(c, "CREATE TABLE "+Prefix+"_batch (id int)")
		tx, err := c.BeginTx(background, nil)
		Must(err)
		statement, err := tx.Prepare("INSERT INTO " + Prefix + "_batch VALUES ($1)")
		Must(err)
		for i := 0; i < 200; i++ {
			_, err := statement.Exec(i)
			Must(err)
		}
		Must(tx.Commit())
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_batch"), 200)
	})
	Check("insert_many", func() {
		exec(c, "CREATE TABLE "+Prefix+"_keys (id int GENERATED ALWAYS AS IDENTITY, body text)")
		Equal(one(c, "WITH made AS (INSERT INTO "+Prefix+"_keys (body) VALUES ($1), ($2) RETURNING id) SELECT sum(id) FROM made", "a", nil), 3)
	})
	Check("empty", func() {
		for _, text := range []string{"", "-- nothing", ";"} {
			exec(c, text)
		}
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("notice", func() {
		connector, err := pq.NewConnector("")
		Must(err)
		seen := ""
		db := sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, func(notice *pq.Error) { seen = notice.Severity }))
		_, err = db.Exec("DROP TABLE IF EXISTS " + Prefix + "_nothing")
		Must(err)
		Equal(seen, "NOTICE")
	})
	Check("refusal", func() {
		_, first := c.ExecContext(background, ForeignWrite)
		_, second := c.ExecContext(background, ForeignWrite+" WHERE person_id = $1", "x")
		for _, err := range []error{first, second} {
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
		_, err := c.ExecContext(background, "INSERT INTO "+Prefix+"_unique VALUES ($1)", 1)
		Equal(refused(err, "23505").Constraint, "one_of_a_kind")
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("listen", func() {
		connected := make(chan bool, 1)
		listener := pq.NewListener("", time.Second, time.Second, func(pq.ListenerEventType, error) {
			select {
			case connected <- true:
			default:
			}
		})
		defer listener.Close()
		<-connected
		Equal(strings.Contains(refused(listener.Listen("a"), "42501").Hint, "Poll a table"), true)
	})
	Check("transaction", func() { transaction(c) })
	Check("refused_in_transaction", func() {
		tx, err := c.BeginTx(background, nil)
		Must(err)
		_, err = tx.Exec("INSERT INTO " + Prefix + "_transaction VALUES (1000)")
		Must(err)
		_, err = tx.Exec(ForeignWrite)
		refused(err, "42501")
		_, err = tx.Exec("SELECT $1::int", 1)
		refused(err, "25P02")
		Must(tx.Rollback())
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction WHERE id = 1000"), 0)
	})
	Check("refused_in_savepoint", func() {
		tx, err := c.BeginTx(background, nil)
		Must(err)
		for _, step := range []struct{ text, state string }{
			{"SAVEPOINT here", ""}, {"CREATE TABLE unqualified (id int)", "42501"}, {"ROLLBACK TO SAVEPOINT here", ""},
			{"INSERT INTO " + Prefix + "_transaction VALUES (3)", ""},
		} {
			if _, err = tx.Exec(step.text); step.state != "" {
				refused(err, step.state)
			} else {
				Must(err)
			}
		}
		Must(tx.Commit())
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction WHERE id = 3"), 1)
	})
	Check("refused_in_batch", func() {
		_, err := c.ExecContext(background, "BEGIN; "+ForeignWrite+"; COMMIT")
		refused(err, "42501")
		exec(c, "ROLLBACK")
		_, err = c.ExecContext(background, "SELECT 1; SELECT 2")
		refused(err, "42501")
		Equal(one(c, "SELECT 1"), 1)
	})
	Check("copy_in", func() { exec(c, "CREATE TABLE "+Prefix+"_copy (id int, body text)"); Must(copyIn(c, 20000, "")) })
	NotApplicable("copy_out", "lib/pq has no COPY TO")
	Check("copy_broken", func() {
		refused(copyIn(c, 1, "no number"), "22P02")
		Equal(one(c, "SELECT count(*) FROM "+Prefix+"_copy"), 20000)
	})
	Check("cancel", func() {
		bounded, stop := context.WithCancel(background)
		time.AfterFunc(300*time.Millisecond, stop)
		_, err := c.ExecContext(bounded, Long)
		Equal(err != nil, true)
		other := conn("")
		Equal(one(other, "SELECT 1"), 1)
	})
	c = conn("")
	Check("timeout", func() {
		exec(c, "SET statement_timeout = 300")
		_, err := c.ExecContext(background, Long)
		refused(err, "57014")
		exec(c, "RESET statement_timeout")
	})
	Check("settings", func() {
		conns := []*sql.Conn{conn(""), conn(""), conn("")}
		for i, each := range conns {
			exec(each, fmt.Sprint("SET extra_float_digits = ", i))
		}
		for round := 0; round < 15; round++ {
			Equal(one(conns[round%3], "SHOW extra_float_digits"), round%3)
		}
	})
	Check("introspection", func() {
		rows, err := c.QueryContext(background, "SELECT id, full_name, salary, updated_at FROM dl_resolved.people LIMIT 1")
		Must(err)
		kinds, err := rows.ColumnTypes()
		Must(err)
		Must(rows.Close())
		Equal(kinds[0].DatabaseTypeName()+kinds[1].DatabaseTypeName(), "INT8TEXT")
	})
	Check("pool", func() { pool() })
	Check("rotation", func() {
		password := Rotate()
		Equal(one(conn("password="+password), "SELECT 1"), 1)
		refused(connecting(""), "28P01")
		Equal(one(c, "SELECT count(*) FROM dl_resolved.people"), People)
	})
}

func types(c *sql.Conn) {
	exec(c, "DROP TABLE IF EXISTS "+Prefix+"_types")
	exec(c, "CREATE TABLE "+Prefix+"_types (a boolean, b smallint, c bigint, d double precision, e numeric, f text, g text, h bytea, "+
		"i uuid, j timestamptz, k date, l int[], m text[], n jsonb, o interval)")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	when := time.Date(2024, 3, 31, 1, 30, 0, 1000, time.UTC)
	marks := []string{}
	for i := 1; i <= 15; i++ {
		marks = append(marks, fmt.Sprint("$", i))
	}
	insert := "INSERT INTO " + Prefix + "_types VALUES (" + strings.Join(marks, ", ") + ")"
	text := "Þóra 東京 🐘 ' \" \\ \n\t $1"
	exec(c, insert, true, -32768, int64(math.MinInt64), math.Inf(1), "-12345678901234567890.0123456789", text, "", every,
		"00112233-4455-6677-8899-aabbccddeeff", when, "2024-02-29", pq.Array([]int64{1, 2, 3}), pq.Array([]string{"a,b", "q\"uote", "", "NULL"}),
		`{"a": [1, null, "ü"]}`, "3 days 00:00:05")
	exec(c, insert, make([]interface{}, 15)...)
	var (
		a        bool
		b, cc    int64
		d        float64
		e, f, g  string
		h        []byte
		i, n, o  string
		j, k     time.Time
		numbers  []int64
		texts    []string
		nothing  sql.NullString
		count    int
		selected = "SELECT * FROM " + Prefix + "_types WHERE a"
	)
	Must(c.QueryRowContext(background, selected).Scan(&a, &b, &cc, &d, &e, &f, &g, &h, &i, &j, &k, pq.Array(&numbers), pq.Array(&texts), &n, &o))
	Equal([]interface{}{a, b, cc, d, e, f, g, h, i, j.Equal(when), numbers, texts, n, o},
		[]interface{}{true, -32768, int64(math.MinInt64), math.Inf(1), "-12345678901234567890.0123456789", text, "", every,
			"00112233-4455-6677-8899-aabbccddeeff", true, []int64{1, 2, 3}, []string{"a,b", "q\"uote", "", "NULL"}, `{"a": [1, null, "ü"]}`, "3 days 00:00:05"})
	Must(c.QueryRowContext(background, "SELECT f, 1 FROM "+Prefix+"_types WHERE a IS NULL").Scan(&nothing, &count))
	Equal(nothing.Valid, false)
}

func transaction(c *sql.Conn) {
	exec(c, "CREATE TABLE "+Prefix+"_transaction (id int)")
	for _, keep := range []bool{true, false} {
		tx, err := c.BeginTx(background, &sql.TxOptions{Isolation: sql.LevelSerializable})
		Must(err)
		_, err = tx.Exec("INSERT INTO "+Prefix+"_transaction VALUES ($1)", 1)
		Must(err)
		if keep {
			Must(tx.Commit())
		} else {
			Must(tx.Rollback())
		}
	}
	tx, err := c.BeginTx(background, &sql.TxOptions{ReadOnly: true})
	Must(err)
	_, err = tx.Exec("INSERT INTO "+Prefix+"_transaction VALUES ($1)", 2)
	refused(err, "25006")
	Must(tx.Rollback())
	Equal(one(c, "SELECT count(*) FROM "+Prefix+"_transaction"), 1)
}

func copyIn(c *sql.Conn, count int, first string) error {
	tx, err := c.BeginTx(background, nil)
	Must(err)
	defer tx.Rollback()
	parts := strings.Split(Prefix+"_copy", ".")
	statement, err := tx.Prepare(pq.CopyInSchema(parts[0], parts[1], "id", "body"))
	Must(err)
	for i := 0; i < count; i++ {
		var id interface{} = i
		if first != "" {
			id = first
		}
		if _, err := statement.Exec(id, "東京"); err != nil {
			return err
		}
	}
	if _, err := statement.Exec(); err != nil {
		return err
	}
	Must(statement.Close())
	return tx.Commit()
}

func pool() {
	db := open("")
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(2)
	var group sync.WaitGroup
	wrong := make(chan error, 100)
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			var got int
			if err := db.QueryRow("SELECT $1::int", i).Scan(&got); err != nil || got != i {
				wrong <- fmt.Errorf("%d: %v %v", i, got, err)
			}
		}(i)
	}
	group.Wait()
	close(wrong)
	Must(<-wrong)
	Must(db.Close())
}
