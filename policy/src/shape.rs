//! The shape of a text: the tokens of PostgreSQL's own scanner with the values of literals taken out.
//!
//! The grammar sees nothing but tokens, so two texts of one shape have the same tree but for the values of their literals.
//! Where no rule looks at a literal they have the same verdict. What is not plainly so has no shape: whoever asks for one
//! must be content with none.

use pg_query::protobuf::Token;

use crate::scan;

/// The longest text that has a shape, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A shape as a key: for each token its number, then its own characters unless it is a literal, then a zero byte.
/// White space and comments are left out.
pub(crate) fn shape(text: &str) -> Option<Box<[u8]>> {
    // The scanner takes quadratic time over nested comments; the pass before it bounds them. A zero byte would end it early.
    if text.len() > TEXT_BYTES_MAX || text.as_bytes().contains(&0) || scan::measure(text).is_err() {
        return None;
    }
    let tokens = pg_query::scan(text).ok()?.tokens;
    let mut key = Vec::with_capacity(text.len() + 3 * tokens.len());
    let mut end = 0;
    for token in &tokens {
        let (from, to) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        if !text.get(end..from)?.bytes().all(is_space) {
            return None;
        }
        let own = text.get(from..to).filter(|own| !own.is_empty())?;
        end = to;
        let kind = Token::try_from(token.token).ok()?;
        if matches!(kind, Token::SqlComment | Token::CComment) {
            continue;
        }
        key.extend_from_slice(&token.token.to_le_bytes()[..2]);
        match taken_out(kind)? {
            true => {}
            false => key.extend_from_slice(own.as_bytes()),
        }
        key.push(0);
    }
    text.get(end..)?.bytes().all(is_space).then(|| key.into_boxed_slice())
}

/// Whether a token's value is left out; `None` where a literal's value decides how the text is read.
fn taken_out(kind: Token) -> Option<bool> {
    match kind {
        Token::Iconst | Token::Fconst | Token::Sconst => Some(true),
        // UESCAPE 'x' says how to read the name or string before it; FLOAT(n) picks the type or is an error.
        Token::Uident | Token::Usconst | Token::Uescape | Token::FloatP => None,
        _ => Some(false),
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::shape;

    /// Texts of each row have one shape; no two rows share theirs.
    const ROWS: &[&[&str]] = &[
        &["SELECT 1", "SELECT 2", "SELECT  /* x */ 33 -- y", "\tSELECT\n0x1F"],
        &["SELECT 1.5", "SELECT 99999999999999999999", "SELECT 1e10"],
        &["SELECT 'a'", "SELECT E'\\'b'", "SELECT $$ '; DROP $$", "SELECT 'a'\n 'b'", "SELECT ''''"],
        &["SELECT a", "SELECT a -- 1"],
        &["SELECT A"],
        &["SELECT \"a\""],
        &["SELECT $1"],
        &["SELECT $2"],
        &["SELECT -1", "SELECT - 2"],
        &["SELECT b'1'"],
        &["SELECT b'0'"],
        &["SELECT x'1'"],
        &["SELECT N'a'", "SELECT N'b'"],
        &["SELECT 1;", "SELECT 2 ;"],
        &["SELECT 1; SELECT 1"],
        &["SELECT 1, 1"],
        &["SELECT 1 AS a"],
        &["SELECT 1 a"],
        &["SELECT a.b"],
        &["SELECT a . b c"],
        &["", "-- nothing", " /* */ "],
    ];

    #[test]
    fn texts_share_a_shape_that_differ_in_literals_and_space_alone() {
        let shapes: Vec<_> = ROWS.iter().map(|row| shape(row[0]).expect(row[0])).collect();
        for (row, of) in ROWS.iter().zip(&shapes) {
            for text in *row {
                assert_eq!(shape(text).as_ref(), Some(of), "{text}");
                assert_eq!(shapes.iter().filter(|other| *other == of).count(), 1, "{text}");
            }
        }
    }

    #[test]
    fn what_cannot_be_told_has_none() {
        let long = format!("SELECT '{}'", "x".repeat(70_000));
        let comments = format!("SELECT 1 {}{}", "/*".repeat(17), "*/".repeat(17));
        for text in [
            "SELECT 'a",
            "SELECT U&'d!0061' UESCAPE '!'",
            "SELECT U&\"d!0061\" UESCAPE '!'",
            "SELECT 1::float(24)",
            "SELECT 1\0",
            "SELECT /* 1",
            "SELECT \"\"",
            &long,
            &comments,
        ] {
            assert_eq!(shape(text), None, "{text}");
        }
    }
}
