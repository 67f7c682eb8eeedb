//! The verdict over one text: bounds, grammar, facts, and the role's rules over these facts. Pure: the same text, role and
//! target always give the same answer.

mod outline;
mod refuse;
mod rewrite;
mod rules;
mod syntax;

use std::sync::Arc;

use pg_query::protobuf as pb;

use crate::SQL_BYTES_MAX;
use crate::classify::{Facts, classify};
use crate::document::RolePolicy;
use crate::scan::{self, Measure};
use crate::verdict::{Denial, Passed, Permit, Surface, Target, Verdict};

pub use outline::Outline;
use refuse::Refuse;
use rules::Rules;

/// The stack that [`judge`] needs for the worst text within the bounds, in bytes.
///
/// Measured over every way to nest and chain at the bounds: at most 20 MB in an optimised build and 100 MB in a debug build,
/// nearly all of it in the decoder of the parser's tree. Only what is touched costs memory.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 192 << 20 } else { 64 << 20 };

/// Texts up to this length and depth are judged within 2 MB of stack and some milliseconds.
const SMALL_BYTES_MAX: usize = 8 * 1024;
const SMALL_DEPTH_MAX: usize = 40;

/// Whether judging `text` may need more stack or time than an ordinary worker should give.
///
/// A text that is small in length and depth is judged in place; any other belongs on a thread with a stack of
/// [`STACK_BYTES`], of which there should be few at a time: the largest tree that passes takes some 550 MB and a second or
/// two. A text that is refused before parsing counts as small.
pub fn needs_big_stack(text: &[u8]) -> bool {
    if text.len() > SQL_BYTES_MAX {
        return false;
    }
    match std::str::from_utf8(text).map(scan::measure) {
        Ok(Ok(measure)) => text.len() > SMALL_BYTES_MAX || measure.depth > SMALL_DEPTH_MAX,
        _ => false,
    }
}

/// Judges `text` (without a terminating NUL) for `role`.
///
/// Needs a stack of [`STACK_BYTES`] unless [`needs_big_stack`] says otherwise.
pub fn judge(role: &RolePolicy, surface: Surface, text: &[u8], target: &Target<'_>) -> Verdict {
    match pass(role, surface, text, target) {
        Ok((text, passed)) => Verdict::Allow(Permit::new(text, passed)),
        Err(denial) => Verdict::Deny(Arc::new(*denial)),
    }
}

fn pass<'t>(
    role: &RolePolicy,
    surface: Surface,
    text: &'t [u8],
    target: &Target<'_>,
) -> Result<(&'t str, Passed), Box<Denial>> {
    let (text, measure) = bounded(text)?;
    let refuse = Refuse { role, text };
    let tree = pg_query::parse(text, 0).map_err(|error| syntax::denial(text, &error))?.protobuf;
    let statements = &tree.stmts;
    refuse.count(surface, statements)?;
    let rules = Rules { role, target, refuse: &refuse, long_name: measure.long_name };
    let mut all = Vec::with_capacity(statements.len());
    for statement in statements {
        let location = start_of(text, statement);
        let node = statement.stmt.as_deref().ok_or_else(|| refuse.empty())?;
        let facts = classify(node, location, &role.tables).map_err(|refusal| refuse.classified(*refusal, location))?;
        all.push(rules.apply(facts)?);
    }
    refuse.batch(surface, &all)?;
    Ok((text, passed(all)))
}

/// The checks that come before anything recurses.
fn bounded(text: &[u8]) -> Result<(&str, Measure), Box<Denial>> {
    if text.len() > SQL_BYTES_MAX {
        return Err(refuse::too_long(text.len()));
    }
    let text = std::str::from_utf8(text).map_err(|error| refuse::not_utf8(text, &error))?;
    if let Some(at) = text.find('\0') {
        return Err(refuse::zero_byte(text, at));
    }
    let measure = scan::measure(text).map_err(|too_much| refuse::too_much(text, too_much))?;
    Ok((text, measure))
}

/// Where a statement starts, after the white space and comments that the parser counts to it.
fn start_of(text: &str, statement: &pb::RawStmt) -> i32 {
    let from = usize::try_from(statement.stmt_location).unwrap_or(0);
    let rest = text.get(from..).unwrap_or("");
    let start = match scan::Lexer::new(rest).next() {
        Ok(Some(token)) => from + token.start,
        _ => from,
    };
    i32::try_from(start).unwrap_or(-1)
}

fn passed(all: Vec<Facts<'_>>) -> Passed {
    let Outline { kind, statements, reads, writes, functions } = Outline::of(&all);
    let literals_matter = !matches!(all.as_slice(), [facts] if rules::ignores_literals(facts));
    let mut effects = Vec::new();
    let mut ends = Vec::with_capacity(statements);
    for facts in all {
        effects.extend(facts.effects);
        ends.push(effects.len());
    }
    Passed { kind, statements, effects, ends, reads, writes, functions, literals_matter }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
