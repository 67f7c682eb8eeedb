//! One pass over a text before the parser sees it: how deep can the tree become, how deep are comments nested, are there
//! names that PostgreSQL would cut off?
//!
//! The parser, the decoder of its tree, our walk and the tree's release all recurse, and a stack overflow cannot be caught:
//! so the depth is bounded here, before anything recurses. The pass follows PostgreSQL's lexer
//! (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>) closely enough that every text which the parser
//! *accepts* is at most as deep as measured; where it deviates it measures more. It must not allocate by what a text says,
//! and it decides nothing about what a text means.

/// The deepest tree that is parsed, in nodes from the root to a leaf, where a bracket counts for the two nodes that it can
/// add and a subquery for its three. PostgreSQL itself gives up between 2,000 and 5,000 with its default `max_stack_depth`.
pub(crate) const DEPTH_MAX: usize = 2_000;

/// The most memory that a tree may take by our estimate, in kB: names become far bigger nodes than literals do.
pub(crate) const TREE_KB_MAX: usize = 512 * 1024;

/// What a token adds to that estimate, in kB, measured on texts of one kind of token.
const NAME_KB: usize = 4;
const LITERAL_KB: usize = 2;
const PUNCTUATION_KB: usize = 1;

/// How deep `/*` may be nested: the parser's lexer takes quadratic time over nested comments and cannot be interrupted.
pub(crate) const COMMENT_DEPTH_MAX: usize = 16;

/// The longest identifier in bytes (NAMEDATALEN - 1); PostgreSQL cuts longer ones off.
pub(crate) const NAME_BYTES_MAX: usize = 63;

/// What the pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    /// An upper bound for the depth of the tree.
    pub(crate) depth: usize,
    /// What the tree may take in memory, roughly, in kB; the time to make it goes with that.
    pub(crate) tree_kb: usize,
    /// Some identifier is longer than [`NAME_BYTES_MAX`].
    pub(crate) long_name: bool,
}

/// Why a text is not parsed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMuch {
    /// Deeper than [`DEPTH_MAX`]; the byte offset at which that was certain.
    Tree(usize),
    /// The tree would take more than [`TREE_KB_MAX`]; the byte offset at which that was certain.
    Size(usize),
    /// Comments nested deeper than [`COMMENT_DEPTH_MAX`]; the byte offset of the innermost.
    Comment(usize),
}

/// Measures `text`.
pub(crate) fn measure(text: &str) -> Result<Measure, TooMuch> {
    let mut lexer = Lexer::new(text);
    let mut depth = Depth::new();
    let mut tree_kb = 0;
    while let Some(token) = lexer.next()? {
        tree_kb += match token.lexeme {
            Lexeme::Word | Lexeme::QuotedName => NAME_KB,
            Lexeme::Literal => LITERAL_KB,
            Lexeme::Operator(_) | Lexeme::Punctuation(b'(' | b'[' | b';') => PUNCTUATION_KB,
            Lexeme::Punctuation(_) => 0,
        };
        if tree_kb > TREE_KB_MAX {
            return Err(TooMuch::Size(token.start));
        }
        depth.token(&token, text.as_bytes()).map_err(|()| TooMuch::Tree(token.start))?;
    }
    let depth = depth.finish();
    if depth > DEPTH_MAX {
        return Err(TooMuch::Tree(text.len()));
    }
    Ok(Measure { depth, tree_kb, long_name: lexer.long_name })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lexeme {
    /// An unquoted identifier or keyword.
    Word,
    /// A quoted identifier.
    QuotedName,
    /// A string, a number or a parameter.
    Literal,
    /// A run of operator characters that is so many tokens.
    Operator(usize),
    /// One of `( ) [ ] , ; .` or `:`, or `::` as two colons.
    Punctuation(u8),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    pub(crate) lexeme: Lexeme,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// PostgreSQL's lexer as far as it matters here.
pub(crate) struct Lexer<'t> {
    bytes: &'t [u8],
    at: usize,
    long_name: bool,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { bytes: text.as_bytes(), at: 0, long_name: false }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// The next token; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, TooMuch> {
        self.skip_space()?;
        let start = self.at;
        let Some(&first) = self.bytes.get(start) else { return Ok(None) };
        let lexeme = match first {
            b'\'' => self.string(false),
            b'"' => self.quoted_name(),
            b'e' | b'E' if self.peek(1) == b'\'' => self.prefixed_string(1, true),
            b'b' | b'B' | b'x' | b'X' | b'n' | b'N' if self.peek(1) == b'\'' => self.prefixed_string(1, false),
            b'u' | b'U' if self.peek(1) == b'&' && self.peek(2) == b'\'' => self.prefixed_string(2, false),
            b'u' | b'U' if self.peek(1) == b'&' && self.peek(2) == b'"' => {
                self.at += 2;
                self.quoted_name()
            }
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() => self.number(),
            first if is_name_start(first) => self.word(),
            b'(' | b')' | b'[' | b']' | b',' | b';' | b'.' => {
                self.at += 1;
                Lexeme::Punctuation(first)
            }
            b':' if self.peek(1) == b':' => {
                self.at += 2;
                Lexeme::Operator(1)
            }
            first if is_operator(first) => self.operator(),
            _ => {
                self.at += 1;
                Lexeme::Punctuation(b':')
            }
        };
        Ok(Some(Token { lexeme, start, end: self.at }))
    }

    fn skip_space(&mut self) -> Result<(), TooMuch> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                (b'-', b'-') => {
                    let rest = &self.bytes[self.at..];
                    self.at += rest.iter().position(|&byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                }
                (b'/', b'*') => self.comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn comment(&mut self) -> Result<(), TooMuch> {
        let mut depth = 0usize;
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    if depth > COMMENT_DEPTH_MAX {
                        return Err(TooMuch::Comment(self.at));
                    }
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Ok(())
    }

    fn prefixed_string(&mut self, prefix: usize, escapes: bool) -> Lexeme {
        self.at += prefix;
        self.string(escapes)
    }

    /// A string and its continuations on following lines; `escapes`: backslashes escape, as in E'…'.
    fn string(&mut self, escapes: bool) -> Lexeme {
        self.at += 1;
        while self.at < self.bytes.len() {
            match self.peek(0) {
                b'\\' if escapes => self.at += 2,
                b'\'' if self.peek(1) == b'\'' => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    match self.continuation() {
                        Some(next) => self.at = next,
                        None => return Lexeme::Literal,
                    }
                }
                _ => self.at += 1,
            }
        }
        self.at = self.bytes.len();
        Lexeme::Literal
    }

    /// Where the string goes on, if only white space with a line break stands before another quote.
    fn continuation(&self) -> Option<usize> {
        let rest = &self.bytes[self.at..];
        let space = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c))?;
        let line_break = rest[..space].iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        (line_break && rest[space] == b'\'').then_some(self.at + space + 1)
    }

    fn quoted_name(&mut self) -> Lexeme {
        self.at += 1;
        let start = self.at;
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'"', b'"') => self.at += 2,
                (b'"', _) => break,
                _ => self.at += 1,
            }
        }
        self.long_name |= self.at.saturating_sub(start) > NAME_BYTES_MAX;
        self.at = (self.at + 1).min(self.bytes.len());
        Lexeme::QuotedName
    }

    /// `$1`, `$$…$$` or `$tag$…$tag$`.
    fn dollar(&mut self) -> Lexeme {
        let rest = &self.bytes[self.at + 1..];
        let tag = match rest.first() {
            Some(&byte) if is_name_start(byte) => rest.iter().take_while(|&&byte| is_tag_byte(byte)).count(),
            _ => 0,
        };
        if rest.get(tag) == Some(&b'$') {
            let delimiter = &self.bytes[self.at..self.at + tag + 2];
            let body = self.at + delimiter.len();
            let length = find(&self.bytes[body..], delimiter).unwrap_or(self.bytes.len() - body);
            self.at = (body + length + delimiter.len()).min(self.bytes.len());
            return Lexeme::Literal;
        }
        self.at += 1;
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        Lexeme::Literal
    }

    fn number(&mut self) -> Lexeme {
        let mut dots = 0;
        loop {
            match self.peek(0) {
                b'.' if dots == 0 && self.peek(1) != b'.' => dots += 1,
                byte if byte.is_ascii_alphanumeric() || byte == b'_' => {}
                _ => return Lexeme::Literal,
            }
            self.at += 1;
        }
    }

    fn word(&mut self) -> Lexeme {
        let start = self.at;
        while is_tag_byte(self.peek(0)) || self.peek(0) == b'$' {
            self.at += 1;
        }
        self.long_name |= self.at - start > NAME_BYTES_MAX;
        Lexeme::Word
    }

    /// A run of operator characters up to a comment. PostgreSQL cuts `+` and `-` off its end, unless it contains a character
    /// that no SQL operator has; what was cut off is lexed again.
    fn operator(&mut self) -> Lexeme {
        let rest = &self.bytes[self.at..];
        let mut length = rest.iter().take_while(|&&byte| is_operator(byte)).count();
        let comment = (1..length).find(|&at| matches!(&rest[at..], [b'-', b'-', ..] | [b'/', b'*', ..]));
        length = comment.unwrap_or(length);
        let run = &rest[..length];
        let special = run.iter().any(|byte| b"~!@#^&|`?%".contains(byte));
        let trailing = run[1..].iter().rev().take_while(|byte| matches!(byte, b'+' | b'-')).count();
        self.at += length;
        Lexeme::Operator(if special { 1 } else { 1 + trailing })
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(dollar) = haystack[from..].iter().position(|&byte| byte == b'$') {
        if haystack[from + dollar..].starts_with(needle) {
            return Some(from + dollar);
        }
        from += dollar + 1;
    }
    None
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_tag_byte(byte: u8) -> bool {
    is_name_start(byte) || byte.is_ascii_digit()
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}

/// What opened a level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opener {
    Statement,
    Bracket,
    Case,
}

/// What a level of brackets adds: a call's argument, a list, `JSON_OBJECT(key: …)`, …
const BRACKET: usize = 2;
/// What a subquery adds: the sublink, the SELECT and its target.
const SUBQUERY: usize = 3;

/// One level of brackets or CASE. Its depth is its own weight + joins + set operations + the deepest of its elements; an
/// element's depth is its chain of operators plus the deepest level in it.
#[derive(Clone, Copy)]
struct Level {
    opener: Opener,
    weight: usize,
    /// Nothing has followed the opening bracket yet.
    fresh: bool,
    /// Chaining tokens of the current element.
    chain: usize,
    /// The deepest level inside the current element.
    below: usize,
    /// The deepest element so far.
    deepest: usize,
    joins: usize,
    set_operations: usize,
    /// BETWEEN whose AND has not come yet: that AND does not end an element.
    between: usize,
}

impl Level {
    const fn new(opener: Opener) -> Self {
        Self {
            opener,
            weight: BRACKET,
            fresh: true,
            chain: 0,
            below: 0,
            deepest: 0,
            joins: 0,
            set_operations: 0,
            between: 0,
        }
    }

    fn end_element(&mut self) {
        self.deepest = self.deepest.max(self.chain + self.below);
        self.chain = 0;
        self.below = 0;
    }

    fn depth(&self) -> usize {
        self.weight + self.joins + self.set_operations + self.deepest.max(self.chain + self.below)
    }
}

struct Depth {
    levels: Vec<Level>,
    /// The deepest statement so far.
    deepest: usize,
    /// The next word is a name: it follows a dot or AS.
    name_follows: bool,
}

impl Depth {
    fn new() -> Self {
        Self { levels: vec![Level::new(Opener::Statement)], deepest: 0, name_follows: false }
    }

    fn token(&mut self, token: &Token, text: &[u8]) -> Result<(), ()> {
        let name = std::mem::take(&mut self.name_follows);
        let fresh = self.top().is_some_and(|top| std::mem::take(&mut top.fresh));
        match token.lexeme {
            Lexeme::Literal | Lexeme::QuotedName => {}
            Lexeme::Operator(count) => self.chain(count),
            Lexeme::Word if name => {}
            Lexeme::Word => self.word(&text[token.start..token.end], fresh),
            Lexeme::Punctuation(b'(') => self.open(Opener::Bracket),
            Lexeme::Punctuation(b'[') => {
                self.chain(1);
                self.open(Opener::Bracket);
            }
            Lexeme::Punctuation(b')' | b']') => self.close_bracket(),
            Lexeme::Punctuation(b',') => self.end_element(),
            Lexeme::Punctuation(b';') => self.semicolon(),
            Lexeme::Punctuation(b'.') => self.name_follows = true,
            Lexeme::Punctuation(_) => {}
        }
        if self.levels.len() > DEPTH_MAX / BRACKET { Err(()) } else { Ok(()) }
    }

    fn top(&mut self) -> Option<&mut Level> {
        self.levels.last_mut()
    }

    fn chain(&mut self, count: usize) {
        if let Some(top) = self.top() {
            top.chain += count;
        }
    }

    fn end_element(&mut self) {
        if let Some(top) = self.top() {
            top.end_element();
        }
    }

    fn open(&mut self, opener: Opener) {
        self.levels.push(Level::new(opener));
    }

    /// Closes the innermost level into the one around it.
    fn close(&mut self) {
        if self.levels.len() > 1
            && let Some(closed) = self.levels.pop()
            && let Some(top) = self.top()
        {
            top.below = top.below.max(closed.depth());
        }
    }

    fn close_bracket(&mut self) {
        // A column may be called case: such a level ends with the bracket around it.
        while self.levels.last().is_some_and(|top| top.opener == Opener::Case) {
            self.close();
        }
        self.close();
    }

    fn semicolon(&mut self) {
        // Inside brackets only CREATE RULE has semicolons; there it separates like a comma.
        while self.levels.last().is_some_and(|top| top.opener == Opener::Case) {
            self.close();
        }
        if self.levels.len() > 1 {
            return self.end_element();
        }
        if let Some(statement) = self.top() {
            let depth = statement.depth();
            *statement = Level::new(Opener::Statement);
            self.deepest = self.deepest.max(depth);
        }
    }

    fn word(&mut self, word: &[u8], fresh: bool) {
        // No word of interest is shorter than 2 or longer than 9 bytes.
        let mut lower = [0u8; 9];
        if !(2..=9).contains(&word.len()) {
            return;
        }
        for (to, from) in lower.iter_mut().zip(word) {
            *to = from.to_ascii_lowercase();
        }
        match &lower[..word.len()] {
            b"as" => self.name_follows = true,
            b"case" => self.open(Opener::Case),
            b"select" | b"with" | b"values" | b"table" if fresh => {
                if let Some(top) = self.top() {
                    top.weight = SUBQUERY;
                }
            }
            b"end" if self.levels.last().is_some_and(|top| top.opener == Opener::Case) => self.close(),
            b"when" | b"then" | b"else" | b"or" => self.end_element(),
            b"and" => match self.top() {
                Some(top) if top.between > 0 => top.between -= 1,
                _ => self.end_element(),
            },
            b"between" => {
                self.chain(1);
                if let Some(top) = self.top() {
                    top.between += 1;
                }
            }
            b"join" => {
                if let Some(top) = self.top() {
                    top.joins += 1;
                }
            }
            b"union" | b"intersect" | b"except" => {
                if let Some(top) = self.top() {
                    top.end_element();
                    top.set_operations += 1;
                }
            }
            b"not" | b"is" | b"isnull" | b"notnull" | b"like" | b"ilike" | b"similar" | b"in" | b"collate" | b"at"
            | b"operator" | b"overlaps" | b"escape" | b"any" | b"all" | b"some" => self.chain(1),
            _ => {}
        }
    }

    fn finish(mut self) -> usize {
        while self.levels.len() > 1 {
            self.close();
        }
        let last = self.levels.first().map_or(0, Level::depth);
        self.deepest.max(last)
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
