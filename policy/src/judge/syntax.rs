//! Syntax errors in PostgreSQL's own words, with the position that the parser's binding does not hand over.

use crate::rule::Rule;
use crate::scan::{Lexer, Token};
use crate::verdict::Denial;

use super::refuse::{position, shown};

/// Texts beyond this get no position: finding it parses the text's beginning several times.
const POSITION_BYTES_MAX: usize = 16 * 1024;

/// The refusal for a text that PostgreSQL's grammar does not accept.
pub(super) fn denial(text: &str, error: &pg_query::Error) -> Box<Denial> {
    let message = match error {
        pg_query::Error::Parse(message) => message.clone(),
        other => other.to_string(),
    };
    Box::new(Denial {
        sqlstate: "42601",
        rule: Rule::SyntaxError,
        object: near(&message),
        detail: "Rule syntax.error: PostgreSQL's grammar does not accept the text.".to_owned(),
        hint: String::new(),
        position: offset(text, &message).and_then(|at| position(text, i32::try_from(at).ok()?)),
        message,
    })
}

/// What the message points at.
fn near(message: &str) -> Option<String> {
    let (_, near) = message.split_once(" at or near \"")?;
    Some(shown(near.strip_suffix('"')?))
}

fn offset(text: &str, message: &str) -> Option<usize> {
    if text.len() > POSITION_BYTES_MAX {
        return None;
    }
    if message.ends_with("at end of input") {
        return Some(text.len());
    }
    let (_, near) = message.split_once(" at or near \"")?;
    let near = near.strip_suffix('"')?;
    if !message.starts_with("syntax error") {
        // An unterminated literal or comment reaches to the end.
        return text.ends_with(near).then(|| text.len() - near.len());
    }
    let candidates: Vec<Token> =
        tokens(text).into_iter().filter(|token| text[token.start..].starts_with(near)).collect();
    // The first of the candidates at which a text cut off behind it fails in the same words: cut off earlier it fails at
    // its end or not at all.
    let fails_here = |token: &Token| {
        let end = token.end.max(token.start + near.len());
        text.get(..end).is_some_and(
            |head| matches!(pg_query::parse(head, 0), Err(pg_query::Error::Parse(found)) if found == message),
        )
    };
    let first = candidates.partition_point(|token| !fails_here(token));
    candidates.get(first).map(|token| token.start)
}

fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer::new(text);
    let mut tokens = Vec::new();
    while let Ok(Some(token)) = lexer.next() {
        tokens.push(token);
    }
    tokens
}
