//! The verdict over one text.

use pg_query::protobuf::{VariableSetKind, node::Node};

use crate::document::RolePolicy;
use crate::verdict::{Denial, Effect, Kind, Passed, Permit, Surface, Target, Verdict};

/// Judges `text` (without a terminating NUL) for `role`.
pub fn judge(role: &RolePolicy, surface: Surface, text: &[u8], target: &Target<'_>) -> Verdict {
    let _ = (surface, target);
    match first_step(role, text) {
        Ok(passed) => Verdict::Allow(Permit::new(passed)),
        Err(denial) => Verdict::Deny(denial),
    }
}

/// Whether judging `text` may need more stack than an ordinary thread has: then it belongs on a thread with 64 MB.
pub fn needs_big_stack(text: &[u8]) -> bool {
    text.len() > 8192
}

fn first_step(role: &RolePolicy, text: &[u8]) -> Result<Passed, Box<Denial>> {
    let refuse = || {
        Box::new(Denial {
            sqlstate: "42501",
            message: role.message_kind.clone(),
            rule: "statement.not_allowed",
            object: None,
            detail: "Rule statement.not_allowed.".to_owned(),
            hint: "Make the statement read-only.".to_owned(),
            position: None,
        })
    };
    let text = std::str::from_utf8(text).map_err(|_| refuse())?;
    let tree = pg_query::parse(text, 0).map_err(|_| refuse())?;
    let mut effects = Vec::new();
    let mut kind = Kind::Empty;
    for statement in &tree.protobuf.stmts {
        let node = statement.stmt.as_ref().and_then(|node| node.node.as_ref());
        kind = match node {
            Some(Node::SelectStmt(select)) if select.into_clause.is_none() && select.locking_clause.is_empty() => {
                Kind::Select
            }
            Some(Node::TransactionStmt(transaction)) => {
                effects.push(match transaction.kind {
                    1 | 2 => Effect::Begin,
                    3 => Effect::Commit { chain: transaction.chain },
                    4 => Effect::Rollback { chain: transaction.chain },
                    _ => return Err(refuse()),
                });
                Kind::Transaction
            }
            Some(Node::VariableSetStmt(set)) if set.kind == VariableSetKind::VarReset as i32 => {
                crate::settings::value_allowed(role, &set.name, None)?;
                effects.push(Effect::Reset { name: set.name.clone() });
                Kind::Set
            }
            Some(Node::VariableShowStmt(_)) => Kind::Show,
            _ => return Err(refuse()),
        };
    }
    let statements = tree.protobuf.stmts.len();
    Ok(Passed {
        text: text.to_owned(),
        kind,
        statements,
        effects,
        reads: Vec::new(),
        writes: Vec::new(),
        functions: Vec::new(),
    })
}
