//! The outline of a plain text: the text itself with its numbers and strings taken out, without PostgreSQL's scanner.
//!
//! Asking the scanner for a [shape](crate::shape) costs more than all else that a remembered verdict takes. Most texts that
//! differ in literals alone are plain: ASCII, no comments, no escapes, no dollar quotes, numbers of up to nine digits and strings
//! between two quotes. In these the borders of a literal do not depend on what is in it, whatever
//! PostgreSQL's lexer does with the rest (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>): so texts of one
//! outline have one shape, and what is known of one shape may be remembered under its outlines too. The tests hold this
//! against the scanner. What is not plain has no outline.

/// The longest text that has an outline, bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// An integer of more digits may be one that PostgreSQL reads as a numeric.
const DIGITS_MAX: usize = 9;

/// What stands for a literal; no plain text contains these.
const NUMBER: u8 = 1;
const STRING: u8 = 2;

/// The outline as a key.
pub(crate) fn outline(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.len() > TEXT_BYTES_MAX {
        return None;
    }
    let mut key = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at = match CLASS[usize::from(byte)] {
            Class::Word | Class::Mark => {
                key.push(byte);
                at + 1
            }
            Class::Digit if key.last().is_some_and(|before| continues_a_word(*before)) => {
                key.push(byte);
                at + 1
            }
            Class::Digit => {
                key.push(NUMBER);
                number_end(bytes, at)?
            }
            Class::Quote => {
                // E'…', N'…' and the like are read otherwise.
                if key.last().is_some_and(|before| continues_a_word(*before) || matches!(*before, NUMBER | STRING)) {
                    return None;
                }
                key.push(STRING);
                quoted_end(bytes, at, b'\'')
                    .filter(|end| !bytes.get(*end).is_some_and(|next| continues_a_word(*next)))?
            }
            Class::Name => {
                let end = quoted_end(bytes, at, b'"')?;
                key.extend_from_slice(&bytes[at..end]);
                end
            }
            Class::Doubled if bytes.get(at + 1) == Some(&byte) => return None,
            Class::Doubled => {
                key.push(byte);
                at + 1
            }
            Class::Other => return None,
        };
    }
    Some(key)
}

/// Where the integer that begins at `from` ends.
fn number_end(bytes: &[u8], from: usize) -> Option<usize> {
    let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let plain = digits <= DIGITS_MAX
        && match bytes.get(from + digits) {
            // 1.5, 1e10, 0x1F, 1_000, or what only one version or another can read.
            Some(next) => !continues_a_word(*next) && *next != b'\'',
            None => true,
        };
    plain.then_some(from + digits)
}

/// Behind the string or name that begins with `quote` at `from`; none where a quote is doubled inside.
fn quoted_end(bytes: &[u8], from: usize, quote: u8) -> Option<usize> {
    let is_inside = |byte: u8| (0x20..0x7f).contains(&byte) && byte != quote && byte != b'\\';
    let inside = bytes[from + 1..].iter().take_while(|byte| is_inside(**byte)).count();
    let end = from + 1 + inside;
    let plain = bytes.get(end) == Some(&quote) && bytes.get(end + 1) != Some(&quote);
    plain.then_some(end + 1)
}

fn continues_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')
}

#[derive(Clone, Copy)]
enum Class {
    /// May begin or go on with a name.
    Word,
    /// White space, punctuation, and operators that begin nothing else.
    Mark,
    Digit,
    Quote,
    /// Begins a quoted name.
    Name,
    /// Begins a comment when it comes twice.
    Doubled,
    Other,
}

const CLASS: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Other; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => Class::Word,
            b'0'..=b'9' => Class::Digit,
            b' ' | b'\t' | b'\n' | b'\r' | b'(' | b')' | b',' | b';' | b'.' | b':' | b'[' | b']' => Class::Mark,
            b'=' | b'<' | b'>' | b'+' | b'*' | b'%' | b'!' => Class::Mark,
            b'\'' => Class::Quote,
            b'"' => Class::Name,
            b'-' => Class::Doubled,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
