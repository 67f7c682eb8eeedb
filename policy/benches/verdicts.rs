//! What a verdict costs: remembered by text, remembered by shape, judged; beside PostgreSQL's parser alone.
//!
//! `cargo bench -p portcullis-policy` measures time with criterion. `policy/benches/instructions` counts instructions
//! under callgrind instead: with `--rounds N TEXT WAY` this program does one thing N times and nothing else. `--worst` tells
//! time and memory of the most expensive texts that the bounds let through, each in a process of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a program, not a library"
)]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::Criterion;
use portcullis_policy::{Policy, Scope, Surface, Target, Verdict, VerdictCache, judge};

const WAYS: [&str; 4] = ["hit", "shape", "miss", "parse"];

/// A name, the text, and a text of the same shape.
fn texts() -> Vec<(&'static str, String, String)> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/benign.jsonl");
    let rows = std::fs::read_to_string(corpus).unwrap();
    let describe = rows
        .lines()
        .map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap())
        .filter(|row| row["class"].as_str().unwrap().starts_with("psql \\d"))
        .map(|row| row["sql"].as_str().unwrap().to_owned())
        .max_by_key(String::len)
        .expect("the corpus has psql's queries");
    let two = |text: &str| (text.replace('#', "7"), text.replace('#', "123456"));
    let list = |from: u32| {
        let mut text = "SELECT name FROM storage.items WHERE id IN (".to_owned();
        for id in from..from + 8_300 {
            write!(text, "{id},").unwrap();
        }
        text + "0)"
    };
    let mut texts: Vec<(&'static str, (String, String))> = vec![
        ("select_1", two("SELECT #")),
        ("pgbench_select", two("SELECT abalance FROM storage.pgbench_accounts WHERE aid = #;")),
        ("pgbench_update", two("UPDATE storage.pgbench_accounts SET abalance = abalance + # WHERE aid = #;")),
        (
            "pgbench_insert",
            two(
                "INSERT INTO storage.pgbench_history (tid, bid, aid, delta, mtime) VALUES (#, #, #, #, CURRENT_TIMESTAMP);",
            ),
        ),
        ("bi_2_kb", two(&bi())),
        ("in_list_50_kb", (list(10_000), list(20_000))),
    ];
    // psql's own queries are the same but for an OID in a string.
    let other = describe.replace("'16", "'17");
    texts.push(("psql_describe", (describe, other)));
    texts.into_iter().map(|(name, (text, other))| (name, text, other)).collect()
}

/// What a dashboard sends: a few joins, CTEs and windows, about 2 kB.
fn bi() -> String {
    let mut text =
        "WITH recent AS (SELECT p.company_id, date_trunc('month', p.updated_at) AS month, count(*) AS people \
        FROM dl_resolved.people p WHERE p.updated_at >= now() - interval '# months' GROUP BY 1, 2)"
            .to_owned();
    for part in ["a", "b", "c", "d"] {
        write!(
            text,
            ", {part} AS (SELECT r.company_id, r.month, sum(r.people) OVER (PARTITION BY r.company_id ORDER BY r.month \
             ROWS BETWEEN 3 PRECEDING AND CURRENT ROW) AS total, lag(r.people, #) OVER (ORDER BY r.month) AS before, \
             CASE WHEN r.people > # THEN 'large' WHEN r.people > # THEN 'middle' ELSE 'small' END AS size \
             FROM recent r WHERE r.month < '20#-01-01'::date AND r.company_id IS NOT NULL)"
        )
        .unwrap();
    }
    text + " SELECT c.name, a.month, a.total, b.before, coalesce(d.size, 'none') AS size, round(avg(a.total), #) AS average \
        FROM dl_resolved.companies c JOIN a ON a.company_id = c.company_id LEFT JOIN b USING (company_id) \
        LEFT JOIN d ON d.company_id = c.company_id AND d.month = a.month WHERE c.name ILIKE '%x#%' \
        GROUP BY GROUPING SETS ((1, 2, 3, 4, 5), (1), ()) HAVING count(*) > # ORDER BY 2 DESC NULLS LAST, 1 LIMIT #"
}

/// Texts that grow until a bound stops them: what begins, what is repeated, what ends.
const GROWING: [(&str, &str, &str, &str); 9] = [
    ("names", "SELECT a", ",a", ""),
    ("calls", "SELECT abs(1)", ",abs(1)", ""),
    ("casts", "SELECT 1::int", ",1::int", ""),
    ("subqueries", "SELECT (SELECT 1)", ",(SELECT 1)", ""),
    ("rows", "INSERT INTO storage.t VALUES (1)", ",(1)", ""),
    ("in_list", "SELECT 1 WHERE 1 IN (1", ",1", ")"),
    ("conditions", "SELECT 1 WHERE a=1", " OR a=1", ""),
    ("cases", "SELECT CASE WHEN a THEN b END", ",CASE WHEN a THEN b END", ""),
    ("tables", "SELECT 1 FROM storage.t", ",storage.t", ""),
];

fn grown(name: &str, times: usize) -> String {
    let (_, begin, more, end) = GROWING.iter().find(|(known, ..)| *known == name).expect("a known text");
    format!("{begin}{}{end}", more.repeat(times))
}

/// Prints, for each kind of text, the largest that is parsed at all, and what judging it takes.
fn worst(program: &str) {
    println!("{:<12} {:>10} {:>10} {:>12}", "text", "bytes", "ms", "peak MB");
    for (name, ..) in GROWING {
        let mut times = 1 << 20;
        let output = loop {
            let arguments = ["--worst-of", name, &times.to_string()];
            let output = std::process::Command::new(program).args(arguments).output().unwrap();
            if output.status.success() {
                break output.stdout;
            }
            times = times * 15 / 16;
        };
        print!("{}", String::from_utf8(output).unwrap());
    }
}

/// One of them: fails where a bound refuses it.
fn worst_of(name: &str, times: usize) {
    let bench = Bench::new();
    let text = grown(name, times);
    let started = std::time::Instant::now();
    let (verdict, _) = bench.cache.judge(&bench.scope, Surface::SimpleQuery, text.as_bytes());
    let millis = started.elapsed().as_millis();
    if let Verdict::Deny(denial) = verdict {
        assert!(!denial.sqlstate.starts_with("54"), "{}", denial.message);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{name:<12} {:>10} {millis:>10} {:>12}", text.len(), peak / 1024);
}

struct Bench {
    cache: VerdictCache,
    scope: Scope,
}

impl Bench {
    fn new() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../provisioner/profiles/storage/policy.toml");
        let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cache = VerdictCache::new(64 << 20);
        let scope = cache.scope(policy.primary().unwrap(), &["ws_0123456789abcdef".to_owned(), "acme".to_owned()]);
        for (_, text, _) in texts() {
            cache.judge(&scope, Surface::SimpleQuery, text.as_bytes());
        }
        Self { cache, scope }
    }

    /// Does it once.
    fn go(&self, way: &str, text: &str, other: &str) {
        let surface = Surface::SimpleQuery;
        match way {
            "hit" => drop(black_box(self.cache.recall(&self.scope, surface, text.as_bytes()).expect("a hit"))),
            "shape" => drop(black_box(self.cache.judge(&self.scope, surface, other.as_bytes()))),
            "miss" => {
                let target = Target { database_names: &["ws_0123456789abcdef", "acme"] };
                drop(black_box(judge(self.scope.role(), surface, text.as_bytes(), &target)));
            }
            "parse" => drop(black_box(pg_query::parse(text, 0))),
            other => panic!("no way {other}: {WAYS:?}"),
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let run = || match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--rounds", rounds, name, way] => {
            let bench = Bench::new();
            let texts = texts();
            let (_, text, other) = texts.iter().find(|(known, ..)| known == name).expect("a known text");
            for _ in 0..rounds.parse::<u32>().expect("a number") {
                bench.go(way, text, other);
            }
        }
        [program, "--worst"] => worst(program),
        [_, "--worst-of", name, times] => worst_of(name, times.parse().expect("a number")),
        _ => {
            let bench = Bench::new();
            let mut criterion = Criterion::default().configure_from_args();
            for (name, text, other) in texts() {
                let mut group = criterion.benchmark_group(name);
                for way in WAYS {
                    group.bench_function(way, |b| b.iter(|| bench.go(way, &text, &other)));
                }
                group.finish();
            }
            criterion.final_summary();
        }
    };
    // The parser's tree is deeper than a main thread's stack may be.
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}
