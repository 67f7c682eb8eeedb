//! Where a name stands for which the parser gives no position, and a statement with its targets qualified, for a HINT that
//! can be sent as it is. It reads tokens only, and must not be asked whether anything passes.

use crate::classify::{Location, Name};
use crate::scan::{Lexeme, Lexer, Token};

/// The longest statement that is shown, in bytes; what is longer is cut off at a token.
const SHOWN_BYTES_MAX: usize = 300;

/// The longest literal that is shown, in bytes: data is of no use in a hint.
const LITERAL_BYTES_MAX: usize = 40;

/// The tokens of the statement that starts at a byte offset, up to its semicolon.
fn tokens(text: &str, start: usize) -> impl Iterator<Item = Token> {
    let mut lexer = Lexer::new(text.get(start..).unwrap_or(""));
    std::iter::from_fn(move || lexer.next().ok().flatten())
        .take_while(|token| token.lexeme != Lexeme::Punctuation(b';'))
        .map(move |token| Token { start: token.start + start, end: token.end + start, ..token })
}

/// What a token names, as the parser would decode it; `None` for anything that is no name, and for `U&"…"`.
fn name_of(text: &str, token: &Token) -> Option<String> {
    let written = text.get(token.start..token.end)?;
    match token.lexeme {
        Lexeme::Word => Some(written.to_ascii_lowercase()),
        Lexeme::QuotedName => Some(written.strip_prefix('"')?.strip_suffix('"')?.replace("\"\"", "\"")),
        Lexeme::Literal | Lexeme::Operator(_) | Lexeme::Punctuation(_) => None,
    }
}

/// Where `name` stands in the statement that starts at `start` and begins with so many words of its command.
///
/// A name that something inside the object follows (a column, a constraint) is found too, but only where no other is.
pub(super) fn find(text: &str, start: Location, words: usize, name: &Name<'_>) -> Option<Location> {
    let parts: Vec<&str> =
        [name.database, name.schema, name.name].into_iter().filter(|part| !part.is_empty()).collect();
    let tokens: Vec<Token> = tokens(text, usize::try_from(start).ok()?).collect();
    let whole = position_of(text, &tokens, words, &parts);
    // ALTER … SET SCHEMA names the schema alone.
    let schema = || position_of(text, &tokens, words, parts.get(..1).filter(|_| parts.len() > 1)?);
    i32::try_from(whole.or_else(schema)?).ok()
}

fn position_of(text: &str, tokens: &[Token], words: usize, parts: &[&str]) -> Option<usize> {
    let dot = |at: usize| tokens.get(at).is_some_and(|token| token.lexeme == Lexeme::Punctuation(b'.'));
    let stands = |at: usize| {
        parts.iter().enumerate().all(|(index, part)| {
            let at = at + 2 * index;
            (index == 0 || dot(at - 1))
                && tokens.get(at).and_then(|token| name_of(text, token)).as_deref() == Some(part)
        })
    };
    let places: Vec<usize> = (words..tokens.len()).filter(|&at| !dot(at.wrapping_sub(1)) && stands(at)).collect();
    let alone = places.iter().find(|&&at| !dot(at + 2 * parts.len() - 1));
    alone.or(places.first()).map(|&at| tokens[at].start)
}

/// The statement that starts at `start`, with `schema` in front of every name of `targets` (a byte offset and the name that
/// stands there), without comments and long literals, and bounded. `None` where a target is not where it should be.
pub(super) fn qualified(text: &str, start: Location, targets: &[(Location, &str)], schema: &str) -> Option<String> {
    let mut out = String::new();
    let mut found = 0;
    let mut end = None;
    for token in tokens(text, usize::try_from(start).ok()?) {
        if end.is_some_and(|end| end < token.start) {
            out.push(' ');
        }
        end = Some(token.end);
        if let Some((_, name)) = targets.iter().find(|(at, _)| usize::try_from(*at) == Ok(token.start)) {
            // A long name stands here cut off by the parser; such a text is refused for that.
            if name_of(text, &token).as_deref() != Some(name) {
                return None;
            }
            found += 1;
            out.push_str(schema);
            out.push('.');
        }
        let written = text.get(token.start..token.end)?;
        let plain = !written.contains(char::is_control);
        match token.lexeme {
            Lexeme::Literal if !plain || written.len() > LITERAL_BYTES_MAX => out.push_str("'…'"),
            _ if !plain => return None,
            _ => out.push_str(written),
        }
        if out.len() > SHOWN_BYTES_MAX {
            out.push_str(" …");
            return Some(out);
        }
    }
    (found == targets.len()).then_some(out)
}
