//! Makes new texts from those of the corpora: other functions, other tables, other literals, pieces of other texts, and
//! calls in every position where PostgreSQL evaluates an expression. The same seed makes the same texts.

use portcullis_policy::functions::{self, Class};

use crate::{corpus::Text, scratch::Profile, session::Session};

/// SplitMix64: small, good enough, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(end.max(1)).unwrap_or(1)).unwrap_or_default()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Where an expression may stand (`$e`; `$t` is a table of the role's own, `$s` its schema). Each casts it to what fits there.
const POSITIONS: &[&str] = &[
    "SELECT $e",
    "SELECT $e AS a, $e AS b FROM $t",
    "SELECT 1 FROM $t WHERE ($e) IS NULL",
    "SELECT 1 FROM $t ORDER BY ($e)::text",
    "SELECT count(*) FROM $t GROUP BY ($e)::text",
    "SELECT count(*) FROM $t GROUP BY ROLLUP (k, ($e)::text)",
    "SELECT count(*) FROM $t HAVING ($e) IS NULL",
    "SELECT 1 FROM $t LIMIT ($e)::text::int",
    "SELECT 1 FROM $t OFFSET ($e)::text::int",
    "SELECT 1 FROM $t FETCH FIRST (($e)::text::int) ROWS ONLY",
    "SELECT DISTINCT ON (($e)::text) 1 FROM $t",
    "SELECT count(*) FILTER (WHERE ($e) IS NULL) FROM $t",
    "SELECT string_agg(v, ',' ORDER BY ($e)::text) FROM $t",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ($e)::text::float8) FROM $t",
    "SELECT sum(k) OVER (PARTITION BY ($e)::text) FROM $t",
    "SELECT sum(k) OVER (ORDER BY k ROWS BETWEEN ($e)::text::int PRECEDING AND CURRENT ROW) FROM $t",
    "SELECT sum(k) OVER w FROM $t WINDOW w AS (ORDER BY ($e)::text)",
    "SELECT * FROM $t TABLESAMPLE bernoulli (($e)::text::float4) REPEATABLE (1)",
    "SELECT * FROM $t TABLESAMPLE system (50) REPEATABLE (($e)::text::float8)",
    "SELECT 1 FROM $t JOIN $t AS j ON ($e) IS NULL",
    "SELECT * FROM $t, LATERAL (SELECT $e) AS l",
    "SELECT CASE WHEN ($e) IS NULL THEN 1 ELSE 2 END, COALESCE(($e)::text, 'x'), NULLIF(($e)::text, 'x')",
    "SELECT GREATEST(($e)::text, 'x'), ARRAY[($e)::text], ROW($e, 1), (ARRAY['a'])[($e)::text::int]",
    "SELECT ($e)::text IN ('a', 'b'), ($e)::text = ANY (ARRAY['a']), ($e)::text BETWEEN 'a' AND 'b', ($e)::text LIKE 'a'",
    "SELECT EXISTS (SELECT $e), ARRAY(SELECT $e), 1 IN (SELECT ($e)::text::int)",
    "WITH c AS (SELECT $e AS a) SELECT a FROM c",
    "WITH RECURSIVE c AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM c WHERE n < 3 AND ($e) IS NOT NULL) SELECT * FROM c",
    "VALUES ($e), ($e)",
    "SELECT 1 UNION SELECT ($e)::text::int",
    "SELECT * FROM XMLTABLE('/a' PASSING (($e)::text::xml) COLUMNS b text DEFAULT ($e)::text)",
    "SELECT xmlelement(name a, xmlattributes(($e)::text AS b), $e), xmlforest($e AS c)",
    "SELECT ($e)::text COLLATE \"C\", ($e)::text || 'x', ($e)::text AT TIME ZONE 'UTC'",
    "SELECT extract(year FROM ($e)::text::date), substring(($e)::text FROM 1), position('a' IN ($e)::text)",
    "SELECT f FROM generate_series(1, ($e)::text::int) AS f",
    "SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[($e)::text])) AS r",
    "INSERT INTO $t (v) VALUES (($e)::text)",
    "INSERT INTO $t (k) VALUES (99) ON CONFLICT (k) DO UPDATE SET v = ($e)::text WHERE ($e) IS NULL",
    "INSERT INTO $t (k) VALUES (99) RETURNING $e",
    "INSERT INTO $t (v) SELECT ($e)::text",
    "UPDATE $t SET v = ($e)::text WHERE ($e) IS NOT NULL RETURNING ($e)",
    "UPDATE $t SET (v, client) = (SELECT ($e)::text, 'x')",
    "UPDATE $t SET arr[($e)::text::int] = 1",
    "DELETE FROM $t WHERE ($e) IS NULL RETURNING ($e)",
    "MERGE INTO $t AS m USING (SELECT 5 AS k) AS n ON m.k = n.k AND ($e) IS NULL WHEN NOT MATCHED THEN INSERT (k, v) VALUES (5, ($e)::text)",
    "MERGE INTO $t AS m USING (SELECT 1 AS k) AS n ON m.k = n.k WHEN MATCHED AND ($e) IS NULL THEN UPDATE SET v = ($e)::text",
    "COPY (SELECT $e) TO STDOUT",
    "COPY $t (v) FROM STDIN WHERE ($e) IS NULL",
    "EXPLAIN (ANALYZE, VERBOSE) SELECT $e FROM $t",
    "EXPLAIN ANALYZE UPDATE $t SET v = ($e)::text",
    "PREPARE q AS SELECT $e",
    "DECLARE c CURSOR WITH HOLD FOR SELECT $e",
    "BEGIN; DECLARE c CURSOR FOR SELECT $e; FETCH ALL FROM c",
    "CREATE TABLE $s.made AS SELECT ($e)::text AS a",
    "SELECT ($e)::text AS a INTO $s.made",
    "CREATE TABLE $s.made (a text DEFAULT ($e)::text, b text CHECK (($e) IS NULL))",
    "CREATE TABLE $s.made (a int, b text GENERATED ALWAYS AS (($e)::text) STORED)",
    "CREATE TABLE $s.made (a text) PARTITION BY RANGE ((($e)::text))",
    "CREATE TABLE $s.made PARTITION OF $s.p FOR VALUES FROM (($e)::text::date) TO ('2999-01-01')",
    "CREATE INDEX made ON $t ((($e)::text)) WHERE ($e) IS NULL",
    "ALTER TABLE $t ADD COLUMN added text DEFAULT ($e)::text",
    "ALTER TABLE $t ALTER COLUMN v TYPE text USING ($e)::text",
    "ALTER TABLE $t ADD CONSTRAINT made CHECK (($e) IS NULL) NOT VALID",
    "CREATE STATISTICS $s.made ON (($e)::text), k FROM $t",
    "CREATE VIEW $s.made AS SELECT ($e)::text AS a",
    "CREATE MATERIALIZED VIEW $s.made AS SELECT ($e)::text AS a",
    "CREATE DOMAIN $s.made AS text DEFAULT ($e)::text CHECK (($e) IS NULL)",
    "SELECT set_config('application_name', ($e)::text, false)",
    "SELECT nextval(($e)::text)",
];

/// Words that change what a statement is, put in anywhere.
const WORDS: &[&str] = &[
    "FOR UPDATE",
    "FOR SHARE OF p",
    "INTO",
    "INTO storage.made",
    "INTO TEMP made",
    "INTO UNLOGGED public.made",
    "RETURNING *",
    "WITH HOLD",
    "; COMMIT",
    "; BEGIN",
    "; SET search_path = public",
    "; SELECT 1",
    "AND CHAIN",
    "TEMPORARY",
    "CONCURRENTLY",
    "CASCADE",
    "ONLY",
    "ANALYZE",
    "LOCAL",
    "DEFAULT",
    "NULL",
    "--",
    "/*",
    "*/",
    "'",
    "\"",
    "$$",
    "E'\\''",
    "U&\"\\0070\"",
    "::regclass",
    "OPERATOR(pg_catalog.+)",
    "COLLATE \"C\"",
    ".*",
    "*",
    "(SELECT value FROM dl_meta.tenant_settings)",
    "UNION ALL SELECT 1",
    "WITH d AS (DELETE FROM dl_cache.person_enrichments RETURNING 1)",
    "TO '/tmp/x'",
    "TO PROGRAM 'id'",
    "INHERITS (dl_cache.person_enrichments)",
    "REFERENCES dl_cache.person_enrichments (id)",
    "OWNED BY dl_cache.person_enrichments.id",
    "TABLESPACE pg_global",
    "WITH (user_catalog_table)",
    "NOWAIT",
    "SKIP LOCKED",
    "VARIADIC",
    "LATERAL",
    "IS NOT DISTINCT FROM",
    "USING pg_catalog.>",
];

/// A table, or something in the place of one.
const TABLES: &[&str] = &[
    "storage.t",
    "storage.u",
    "tenant_custom.t",
    "public.t",
    "dl_resolved.people",
    "dl_resolved.companies",
    "dl_cache.person_enrichments",
    "dl_override.person_overrides",
    "dl_meta.tenant_settings",
    "pg_catalog.pg_class",
    "pg_settings",
    "pg_authid",
    "pg_stat_activity",
    "pg_locks",
    "information_schema.tables",
    "information_schema.role_table_grants",
    "t",
    "people",
    "own_database.storage.t",
    "pg_catalog.pg_shadow",
    "pg_statistic",
    "pg_largeobject",
    "pg_user_mapping",
    "pg_prepared_statements",
    "pg_replication_slots",
];

const LITERALS: &[&str] = &[
    "1",
    "0",
    "-1",
    "2147483647",
    "1.5",
    "NULL",
    "'x'",
    "'{}'",
    "'1'",
    "true",
    "now()",
    "'2020-01-01'",
    "$1",
    "16384",
    "'storage.t'",
];

#[derive(Clone, Debug)]
struct Function {
    name: String,
    arguments: Vec<String>,
    kind: String,
}

/// Makes texts.
#[derive(Debug)]
pub struct Mutator {
    dice: Dice,
    /// Those that pass come first.
    functions: Vec<Function>,
    passing: usize,
    seeds: Vec<Text>,
}

impl Mutator {
    /// One that puts in every function that the server has.
    pub async fn new(seed: u64, seeds: Vec<Text>, session: &mut Session) -> Mutator {
        let question = "SELECT proname, prokind, ARRAY(SELECT t::regtype FROM unnest(proargtypes) t), provariadic <> 0 FROM pg_proc
                         ORDER BY oid::int";
        let functions = session.own(question).await.into_iter().map(|row| {
            let list = row[2].clone().unwrap_or_default();
            let arguments = list.trim_matches(['{', '}']).split(',').filter(|name| !name.is_empty());
            Function {
                name: row[0].clone().unwrap_or_default(),
                kind: row[1].clone().unwrap_or_default(),
                arguments: arguments.map(|name| name.trim_matches(['"', '\\']).to_owned()).collect(),
            }
        });
        let passes = |function: &Function| functions::lookup(&function.name) == Class::Allowed;
        let (mut functions, others): (Vec<Function>, Vec<Function>) = functions.partition(passes);
        let passing = functions.len();
        functions.extend(others);
        Mutator { dice: Dice(seed), functions, passing, seeds }
    }

    /// The next text for a role of this profile.
    pub fn next(&mut self, profile: &Profile) -> Text {
        let (kind, schema) = (self.dice.pick(&profile.kinds()).to_string(), profile.schema);
        let sql = match self.dice.below(10) {
            0..=4 => self.positioned(schema),
            5..=6 => self.changed_seed(profile, Self::other_function),
            7 => self.changed_seed(profile, Self::other_name),
            8 => self.changed_seed(profile, Self::splice),
            _ => self.changed_seed(profile, Self::word),
        };
        let surface = if self.dice.one_in(12) { "parse" } else { "simple" };
        Text { role: format!("{}/{kind}", profile.name), surface: surface.to_owned(), sql }
    }

    /// A call of some function in some position.
    fn positioned(&mut self, schema: &str) -> String {
        let table = format!("{schema}.t");
        let mut sql = String::new();
        for (at, part) in self.dice.pick(POSITIONS).split("$e").enumerate() {
            if at > 0 {
                sql.push_str(&self.expression(0));
            }
            sql.push_str(part);
        }
        sql.replace("$t", &table).replace("$s", schema)
    }

    fn expression(&mut self, depth: usize) -> String {
        // Half of the calls are of functions that pass, so that they are not all in vain.
        let of = if self.dice.one_in(2) { self.functions.len() } else { self.passing };
        let at = self.dice.below(of);
        let Function { name, arguments, kind } = self.functions[at].clone();
        let mut values: Vec<String> = Vec::new();
        for of in &arguments {
            let nested = depth < 2 && self.dice.one_in(8);
            values.push(if nested { self.expression(depth + 1) } else { self.literal_of(of) });
        }
        let written = match self.dice.below(12) {
            0 => format!("pg_catalog.{name}"),
            1 => format!("\"{name}\""),
            2 => name.to_uppercase(),
            _ => name.clone(),
        };
        if let [value] = &values[..]
            && self.dice.one_in(6)
        {
            return match self.dice.below(3) {
                0 => format!("({value}).{name}"),
                1 => format!("(SELECT x.{name} FROM (SELECT {value} AS a) AS x)"),
                _ => format!("(SELECT ({value}).{written} FROM {value} AS x)"),
            };
        }
        let call = format!("{written}({})", values.join(", "));
        match kind.as_str() {
            "w" => format!("{call} OVER ()"),
            "a" if values.is_empty() => format!("{name}(*)"),
            "a" if self.dice.one_in(4) => format!("{name}(DISTINCT {})", values.join(", ")),
            "a" if self.dice.one_in(4) => format!("{call} OVER (ORDER BY 1)"),
            _ => call,
        }
    }

    fn literal_of(&mut self, of: &str) -> String {
        let value = match of {
            "integer" | "bigint" | "smallint" | "oid" => self.dice.pick(&["1", "0", "7", "-1"]),
            "double precision" | "real" | "numeric" | "money" => self.dice.pick(&["1", "0.5"]),
            "text" | "character varying" | "name" | "character" | "\"char\"" | "bpchar" | "cstring" => {
                self.dice.pick(&["a", "storage.t", "x", "SELECT 1", "jit", "UTF8"])
            }
            "boolean" => &"true",
            "bytea" => &"\\\\x41",
            "regclass" => self.dice.pick(&["pg_class", "dl_cache.person_enrichments", "storage.t"]),
            "regproc" | "regprocedure" => return format!("'lower(text)'::regprocedure::{of}"),
            "regtype" => &"integer",
            "date" | "timestamp without time zone" | "timestamp with time zone" => &"2020-01-01",
            "time without time zone" | "time with time zone" => &"12:00",
            "interval" => &"1 day",
            "json" | "jsonb" => &"{\"a\": [1]}",
            "jsonpath" => &"$.a",
            "uuid" => &"00000000-0000-0000-0000-000000000000",
            "xml" => &"<a>1</a>",
            "inet" | "cidr" => &"10.0.0.1",
            "macaddr" => &"08:00:2b:01:02:03",
            "tsvector" | "tsquery" => &"a",
            "point" => &"(1,1)",
            "box" | "lseg" | "path" => &"((0,0),(1,1))",
            "polygon" => &"((0,0),(1,1),(1,0))",
            "circle" => &"<(0,0),1>",
            "bit" | "bit varying" => &"101",
            "pg_lsn" => &"0/0",
            "tid" => &"(0,1)",
            "xid" | "cid" | "xid8" => &"1",
            "anyelement" | "anynonarray" | "\"any\"" | "anycompatible" | "any" | "anycompatiblenonarray" => {
                return "1".to_owned();
            }
            "anyarray" | "anycompatiblearray" => return "ARRAY[1]".to_owned(),
            "anyrange" | "anycompatiblerange" => return "int4range(1, 2)".to_owned(),
            "anymultirange" | "anycompatiblemultirange" => return "'{[1,2)}'::int4multirange".to_owned(),
            "record" => return "ROW(1, 2)".to_owned(),
            array if array.ends_with("[]") => return format!("'{{}}'::{array}"),
            other => return format!("NULL::{other}"),
        };
        format!("'{value}'::{of}")
    }

    fn seed(&mut self, profile: &Profile) -> Vec<Token> {
        loop {
            let seed = self.dice.pick(&self.seeds);
            if seed.profile() == profile.name && seed.sql.len() < 4000 {
                return tokens(&seed.sql);
            }
        }
    }

    fn changed_seed(&mut self, profile: &Profile, change: Change) -> String {
        let mut tokens = self.seed(profile);
        for _ in 0..=self.dice.below(2) {
            if !tokens.is_empty() {
                change(self, &mut tokens, profile);
            }
        }
        tokens.iter().map(|token| token.text.as_str()).collect()
    }

    /// Another function in the place of one, or a call in the place of a value.
    #[allow(clippy::ptr_arg, reason = "one of the changes")]
    fn other_function(&mut self, tokens: &mut Vec<Token>, _: &Profile) {
        let called = |at: usize| tokens[at].kind == Is::Word && tokens.get(at + 1).is_some_and(|next| next.text == "(");
        let calls: Vec<usize> = (0..tokens.len()).filter(|at| called(*at)).collect();
        let values: Vec<usize> = (0..tokens.len()).filter(|at| tokens[*at].kind == Is::Value).collect();
        if !calls.is_empty() && (values.is_empty() || self.dice.one_in(2)) {
            let name = self.dice.below(self.functions.len());
            tokens[*self.dice.pick(&calls)].text = self.functions[name].name.clone();
        } else if !values.is_empty() {
            let at = *self.dice.pick(&values);
            tokens[at].text =
                if self.dice.one_in(3) { (*self.dice.pick(LITERALS)).to_owned() } else { self.expression(0) };
        }
    }

    /// Another table, column or value in the place of one.
    fn other_name(&mut self, tokens: &mut Vec<Token>, _: &Profile) {
        let dotted = |at: usize| tokens[at].kind == Is::Word && tokens.get(at + 1).is_some_and(|next| next.text == ".");
        let tables: Vec<usize> = (0..tokens.len().saturating_sub(2)).filter(|at| dotted(*at)).collect();
        if !tables.is_empty() && !self.dice.one_in(3) {
            let at = *self.dice.pick(&tables);
            tokens[at].text = (*self.dice.pick(TABLES)).to_owned();
            tokens.drain(at + 1..at + 3);
        } else {
            let words: Vec<usize> = (0..tokens.len()).filter(|at| tokens[*at].kind != Is::Space).collect();
            if !words.is_empty() {
                let (from, to) = (*self.dice.pick(&words), *self.dice.pick(&words));
                tokens[to] = tokens[from].clone();
            }
        }
    }

    /// A piece of another text in the place of a piece.
    fn splice(&mut self, into: &mut Vec<Token>, profile: &Profile) {
        let donor = self.seed(profile);
        if donor.is_empty() {
            return;
        }
        let from = self.dice.below(donor.len());
        let piece = donor[from..].iter().take(1 + self.dice.below(8)).cloned();
        let at = self.dice.below(into.len());
        let until = (at + self.dice.below(6)).min(into.len());
        into.splice(at..until, piece.collect::<Vec<_>>());
    }

    /// A word more, or one less.
    fn word(&mut self, tokens: &mut Vec<Token>, _: &Profile) {
        let at = self.dice.below(tokens.len());
        if self.dice.one_in(3) {
            tokens.remove(at);
        } else {
            let text = format!(" {} ", self.dice.pick(WORDS));
            tokens.insert(at, Token { kind: Is::Other, text });
        }
    }
}

/// A change of a text, for a role of a profile.
type Change = fn(&mut Mutator, &mut Vec<Token>, &Profile);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Space,
    Word,
    Value,
    Other,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Is,
    text: String,
}

/// Cuts a text roughly as SQL is cut; what it gets wrong makes a stranger mutation.
fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let until = |stop: &dyn Fn(char) -> bool| rest.find(stop).unwrap_or(rest.len());
        let (kind, length) = match first {
            c if c.is_whitespace() => (Is::Space, until(&|c| !c.is_whitespace())),
            c if c.is_alphabetic() || c == '_' => (Is::Word, until(&|c| !c.is_alphanumeric() && c != '_')),
            c if c.is_ascii_digit() => (Is::Value, until(&|c| !c.is_ascii_digit() && c != '.')),
            '\'' => (Is::Value, rest[1..].find('\'').map_or(rest.len(), |end| end + 2)),
            '"' => (Is::Word, rest[1..].find('"').map_or(rest.len(), |end| end + 2)),
            c => (Is::Other, c.len_utf8()),
        };
        let (token, more) = rest.split_at(length);
        tokens.push(Token { kind, text: token.to_owned() });
        rest = more;
    }
    tokens
}
