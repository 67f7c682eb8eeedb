//! Makes new texts from old ones: pieces of others, other spellings of the same, chains and nests, broken bytes. The same
//! seed makes the same texts. It must not judge them.

use crate::{SQL_BYTES_MAX, scan};

/// Words that change what a statement is, and characters that change what the characters after them are.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    ";", "; SELECT 1", "; COMMIT", "; DELETE FROM dl_meta.tenant_settings", "SELECT", "INSERT INTO", "UPDATE", "DELETE FROM",
    "MERGE INTO", "FOR UPDATE", "INTO", "INTO TEMP", "RETURNING *", "WITH", "RECURSIVE", "AS MATERIALIZED (", "AND CHAIN",
    "TEMPORARY", "ONLY", "LATERAL", "ROWS FROM (", "END", "ANALYZE", "LOCAL", "DEFAULT", "NULL", "TO PROGRAM 'id'",
    "TO '/tmp/x'", "UNION ALL", "EXCEPT", "CASCADE", "CONCURRENTLY", "USING", "WINDOW w AS (", "FILTER (WHERE", "OVER (",
    "TABLESAMPLE", "COLLATE", "::regclass", "::text", "OPERATOR(pg_catalog.+)", "pg_sleep(9)", "pg_read_file('x')",
    ".pg_sleep", "public.", "pg_catalog.", "own_database.", "dl_meta.tenant_settings", "pg_authid", "storage.t",
    "JSON_TABLE(", "XMLTABLE(", "GRAPH_TABLE(", "$1", "$99999", "$0", "(", ")", "[", "]", "{", ".", ",", ":", "::", ":=",
    "=>", "*", ".*", "@", "!", "#>>", "?", "??", "\\", "\\.", "--", "-- ", "/*", "*/", "/**/", "/*/*", "'", "''", "\"", "\"\"",
    "$$", "$a$", "E'", "E'\\'", "B'", "X'", "N'", "U&'", "U&\"", "UESCAPE '!'", "\r", "\n", "\x0b", "\x0c", "\u{a0}",
    "\u{feff}", "\u{2028}", "\u{200b}", "\u{37e}", "\u{ff07}", "\u{ff1b}", "\u{2019}", "\u{130}", "\u{212a}", "0x", "0b1",
    "1_000", "1e", "1..2", ".5", "99999999999999999999", "-9223372036854775808",
];

/// Byte sequences at the edges of UTF-8.
#[rustfmt::skip]
const BYTES: &[&[u8]] = &[
    b"\0", b"\xff", b"\xfe", b"\xc0\xaf", b"\xc1\x9c", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
    b"\xe2\x82", b"\x80", b"\xbf", b"\xc2", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\x95\x5c", b"\x1b", b"\x7f", b"\x08",
];

/// What nests or chains: before a piece, and behind it.
#[rustfmt::skip]
const NESTS: &[(&str, &str)] = &[
    ("(", ")"), ("(SELECT ", ")"), ("ARRAY[", "]"), ("abs(", ")"), ("CASE WHEN ", " THEN 1 END"), ("NOT ", ""), ("- ", ""),
    ("@ ", ""), ("", "+1"), ("", "||'a'"), ("", "::int"), ("", " IS NULL"), ("", " COLLATE \"C\""), ("", "[1]"), ("", ".a"),
    ("", " UNION SELECT 1"), ("", " JOIN b ON true"), ("(WITH x AS (SELECT 1) ", ")"), ("ROW(", ")"), ("/*", "*/"), ("", ";"),
    ("(", ""), ("", ")"), ("[", ""), ("CASE ", ""), ("", " AND true"), ("", ", 1"), ("EXPLAIN ", ""), ("'", "'"), ("\"", "\""),
    ("", " AT TIME ZONE 'UTC'"), ("", " = 1"), ("", " OPERATOR(pg_catalog.+) 1"), ("x(", " => 1)"), ("", " ORDER BY 1"),
];

/// How often something nests: mostly around the bound on small texts, rarely around that on all.
const OFTEN: &[usize] = &[1, 2, 3, 15, 17, 38, 40, 42, 90];
const DEEP: &[usize] = &[300, 1_900, 2_100, 10_000, 1_000_000];

/// Makes texts from seeds.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    seeds: Vec<Vec<String>>,
}

impl Mutator {
    /// A mutator over these texts.
    ///
    /// # Panics
    /// Without any text.
    pub fn new(state: u64, seeds: &[String]) -> Self {
        assert!(!seeds.is_empty(), "nothing to begin with");
        Self { state, seeds: seeds.iter().map(|seed| pieces(seed)).collect() }
    }

    /// The next text, of any bytes; at most one byte longer than the longest that is judged.
    pub fn bytes(&mut self) -> Vec<u8> {
        let mut text = self.text().into_bytes();
        if self.one_in(4) {
            self.damage(&mut text);
        }
        if self.one_in(150) {
            text = self.deepen(&text);
        }
        text.truncate(SQL_BYTES_MAX + 1);
        text
    }

    /// The next text, of tokens that stand in some seed or are known to matter.
    pub fn text(&mut self) -> String {
        let mut text = self.seed();
        for _ in 0..=self.below(4) {
            match self.below(8) {
                0 | 1 => self.splice(&mut text),
                2 => self.shuffle(&mut text),
                3 | 4 => self.word(&mut text),
                5 | 6 => self.respell(&mut text),
                _ => self.wrap(&mut text),
            }
        }
        text.concat()
    }

    /// SplitMix64.
    fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % (end.max(1) as u64)).unwrap_or(0)
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn seed(&mut self) -> Vec<String> {
        let at = self.below(self.seeds.len());
        self.seeds[at].clone()
    }

    /// A piece of another text in the place of a piece, or behind all.
    fn splice(&mut self, text: &mut Vec<String>) {
        let donor = self.seed();
        let from = self.below(donor.len());
        let piece = donor.into_iter().skip(from).take(1 + self.below(12));
        let at = self.below(text.len() + 1);
        let until = (at + self.below(6)).min(text.len());
        let piece: Vec<String> = piece.collect();
        text.splice(at..until, piece);
    }

    fn shuffle(&mut self, text: &mut Vec<String>) {
        let (one, other) = (self.below(text.len()), self.below(text.len()));
        match self.below(3) {
            _ if text.is_empty() => {}
            0 => drop(text.remove(one)),
            1 => text.swap(one, other),
            _ => text.insert(other, text[one].clone()),
        }
    }

    fn word(&mut self, text: &mut Vec<String>) {
        let space = if self.one_in(3) { "" } else { " " };
        let word = format!("{space}{}{space}", self.pick(WORDS));
        text.insert(self.below(text.len() + 1), word);
    }

    /// Another spelling of a name or a value, which may mean the same.
    fn respell(&mut self, text: &mut [String]) {
        let at = self.below(text.len());
        let Some(piece) = text.get_mut(at) else { return };
        let inner = piece.trim_matches(['"', '\'']).to_owned();
        *piece = match self.below(12) {
            0 => piece.to_uppercase(),
            1 => piece.to_lowercase(),
            2 => format!("\"{inner}\""),
            3 => format!("U&\"{}\"", escaped(&inner)),
            4 => format!("U&'{}'", escaped(&inner)),
            5 => format!("E'{}'", inner.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>()),
            6 => format!("$${inner}$$"),
            7 => format!("$a${inner}$a$"),
            8 => format!("'{}'\n'{inner}'", piece.trim_matches('\'')),
            9 => format!("\"{inner}{}\"", "x".repeat(64)),
            10 => format!("/*{piece}*/{piece}--{piece}\n"),
            _ => piece.chars().map(|c| if c.is_ascii_graphic() { full_width(c) } else { c }).collect(),
        };
    }

    /// A piece, or all from a piece on, within brackets or a chain.
    fn wrap(&mut self, text: &mut Vec<String>) {
        let at = self.below(text.len());
        let piece =
            if self.one_in(3) { text.split_off(at).concat() } else { text.get(at).cloned().unwrap_or_default() };
        let ((before, after), times) = (self.pick(NESTS), self.pick(OFTEN));
        let wrapped = format!("{}{piece}{}", before.repeat(times), after.repeat(times));
        match text.get_mut(at) {
            Some(old) => *old = wrapped,
            None => text.push(wrapped),
        }
    }

    /// Some bytes changed, put in or taken out.
    fn damage(&mut self, text: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(text.len() + 1);
            let until = (at + self.below(3)).min(text.len());
            let bytes = match self.below(3) {
                0 => self.pick(BYTES).to_vec(),
                1 => vec![u8::try_from(self.below(256)).unwrap_or(0)],
                _ => Vec::new(),
            };
            text.splice(at..until, bytes);
        }
    }

    /// The text, or a few of its bytes, within as many brackets or behind as long a chain as the text may be long.
    fn deepen(&mut self, text: &[u8]) -> Vec<u8> {
        let ((before, after), times) = (self.pick(NESTS), self.pick(DEEP));
        let times = times.min((SQL_BYTES_MAX - text.len().min(SQL_BYTES_MAX)) / (before.len() + after.len()));
        let (from, to) = (self.below(text.len() + 1), self.below(text.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        [&text[..from], before.repeat(times).as_bytes(), &text[from..to], after.repeat(times).as_bytes(), &text[to..]]
            .concat()
    }
}

fn escaped(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { format!("\\{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

/// The same character as it stands between ideographs: what some people normalise and PostgreSQL does not.
fn full_width(c: char) -> char {
    char::from_u32(u32::from(c) + 0xfee0).unwrap_or(c)
}

/// The tokens of PostgreSQL's scanner, each with the space and comments before it; the text alone where it has none.
fn pieces(text: &str) -> Vec<String> {
    let readable = text.len() < 20_000 && !text.contains('\0') && scan::measure(text).is_ok();
    let tokens =
        if readable { pg_query::scan(text).map(|scanned| scanned.tokens).unwrap_or_default() } else { Vec::new() };
    let ends = tokens.iter().filter_map(|token| usize::try_from(token.end).ok()).chain([text.len()]);
    let mut from = 0;
    let pieces = ends.filter_map(|end| {
        let piece = text.get(from..end).filter(|piece| !piece.is_empty())?;
        from = end;
        Some(piece.to_owned())
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use super::{Mutator, pieces};
    use crate::SQL_BYTES_MAX;

    #[test]
    fn pieces_are_the_text() {
        for text in ["SELECT  'a;b' -- c\n, \"x\"\t", "", " ", "SELECT 'open", "/* /* */"] {
            assert_eq!(pieces(text).concat(), text);
        }
        assert_eq!(pieces("SELECT 'a b' , x "), ["SELECT", " 'a b'", " ,", " x", " "]);
    }

    #[test]
    fn a_seed_makes_its_texts_and_no_longer_ones_than_there_may_be() {
        let seeds = ["SELECT 1".to_owned(), String::new(), "x".repeat(30_000)];
        let texts = |seed| {
            let mut mutator = Mutator::new(seed, &seeds);
            (0..500).map(|_| mutator.bytes()).collect::<Vec<_>>()
        };
        let made = texts(1);
        assert!(made == texts(1) && made != texts(2));
        assert!(made.iter().all(|text| text.len() <= SQL_BYTES_MAX + 1));
    }
}
