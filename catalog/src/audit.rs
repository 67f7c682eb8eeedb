//! The audit trail: one hash chain per writer, so that writers do not wait for each other.
//!
//! Each event's hash covers the previous event's hash and every field of its own, in a fixed encoding, so a row that was
//! changed, inserted or removed later shows. An event of a change is written in the change's own transaction.
//! Details must not contain secrets or SQL literals.

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Transaction;

use crate::{
    error::Result,
    id::{Revision, WorkspaceId},
};

/// The hash before the first event of a chain.
pub const CHAIN_START: [u8; 32] = [0; 32];

/// The provisioner's chain. Its writers take turns by the row lock of `catalog.audit_head`.
pub(crate) const PROVISIONER: &str = "provisioner";

/// Who causes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// An API key's id, or the part of the program that acts by itself.
    pub name: String,
    /// The HTTP request.
    pub request_id: Option<String>,
}

impl Actor {
    /// A part of the program that acts by itself, e.g. `reconcile`.
    pub fn program(part: &str) -> Self {
        Self { name: part.to_owned(), request_id: None }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEvent {
    /// A stable name, e.g. `login.rotate`.
    pub action: &'static str,
    /// The workspace that it concerns.
    pub workspace: Option<WorkspaceId>,
    /// What it was done to, e.g. a login's id.
    pub subject: Option<String>,
    /// More, as a JSON object without secrets.
    pub detail: Value,
}

impl AuditEvent {
    /// An event without details.
    pub fn new(action: &'static str) -> Self {
        Self { action, workspace: None, subject: None, detail: Value::Object(serde_json::Map::new()) }
    }

    /// The same, about a workspace.
    #[must_use]
    pub fn workspace(self, workspace: &WorkspaceId) -> Self {
        Self { workspace: Some(workspace.clone()), ..self }
    }

    /// The same, with what it was done to.
    #[must_use]
    pub fn subject(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// The same, with details.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }
}

/// An event as it is stored, without its hash.
struct Record<'a> {
    writer: &'a str,
    sequence: i64,
    at: Timestamp,
    actor: &'a str,
    request_id: Option<&'a str>,
    action: &'a str,
    workspace: Option<&'a str>,
    subject: Option<&'a str>,
    detail: &'a str,
    revision: Option<i64>,
}

impl Record<'_> {
    /// SHA-256 over the previous hash and each field: its length as 4 bytes (all ones for NULL) and its bytes.
    fn hash(&self, previous: &[u8]) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(previous);
        let mut field = |value: Option<&[u8]>| {
            let length = value.map_or(u32::MAX, |bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            context.update(&length.to_be_bytes());
            context.update(value.unwrap_or_default());
        };
        field(Some(self.writer.as_bytes()));
        field(Some(&self.sequence.to_be_bytes()));
        field(Some(&self.at.as_microsecond().to_be_bytes()));
        field(Some(self.actor.as_bytes()));
        field(self.request_id.map(str::as_bytes));
        field(Some(self.action.as_bytes()));
        field(self.workspace.map(str::as_bytes));
        field(self.subject.map(str::as_bytes));
        field(Some(self.detail.as_bytes()));
        field(self.revision.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// Appends to the provisioner's chain within a transaction, and so makes the chain's other writers wait for its end.
pub(crate) async fn append(
    transaction: &Transaction<'_>,
    actor: &Actor,
    event: &AuditEvent,
    revision: Option<Revision>,
) -> Result<()> {
    transaction
        .execute(
            "INSERT INTO catalog.audit_head VALUES ($1, 0, $2) ON CONFLICT DO NOTHING",
            &[&PROVISIONER, &CHAIN_START.as_slice()],
        )
        .await?;
    let head = transaction
        .query_one("SELECT sequence, hash FROM catalog.audit_head WHERE writer = $1 FOR UPDATE", &[&PROVISIONER])
        .await?;
    let (sequence, previous): (i64, Vec<u8>) = (head.try_get::<_, i64>(0)? + 1, head.try_get(1)?);
    let now = Timestamp::now();
    // PostgreSQL keeps microseconds: hash what will be read back.
    let at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let detail = event.detail.to_string();
    let record = Record {
        writer: PROVISIONER,
        sequence,
        at,
        actor: &actor.name,
        request_id: actor.request_id.as_deref(),
        action: event.action,
        workspace: event.workspace.as_ref().map(WorkspaceId::as_str),
        subject: event.subject.as_deref(),
        detail: &detail,
        revision: revision.map(|revision| revision.0),
    };
    let hash = record.hash(&previous);
    transaction
        .execute(
            "INSERT INTO observed.audit (writer, sequence, at, actor, request_id, action, workspace_id, subject, \
             detail, revision, previous_hash, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::json, $10, $11, $12)",
            &[
                &record.writer,
                &record.sequence,
                &record.at,
                &record.actor,
                &record.request_id,
                &record.action,
                &record.workspace,
                &record.subject,
                &record.detail,
                &record.revision,
                &previous,
                &hash.as_slice(),
            ],
        )
        .await?;
    transaction
        .execute(
            "UPDATE catalog.audit_head SET sequence = $2, hash = $3 WHERE writer = $1",
            &[&PROVISIONER, &sequence, &hash.as_slice()],
        )
        .await?;
    Ok(())
}

/// What checking a chain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainCheck {
    /// Every event is as it was written.
    Intact {
        /// How many events there are.
        events: i64,
    },
    /// From this event on the chain does not hold.
    Broken {
        /// The first event that is wrong or missing.
        sequence: i64,
    },
}

/// Events that are read at once when a chain is checked.
const CHECK_ROWS: i64 = 1_000;

/// Checks the provisioner's chain from its start to its head.
pub(crate) async fn check(transaction: &Transaction<'_>) -> Result<ChainCheck> {
    let (mut sequence, mut previous) = (0i64, CHAIN_START.to_vec());
    loop {
        let rows = transaction
            .query(
                "SELECT sequence, at, actor, request_id, action, workspace_id, subject, detail::text, revision, \
                 previous_hash, hash FROM observed.audit WHERE writer = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
                &[&PROVISIONER, &sequence, &CHECK_ROWS],
            )
            .await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let record = Record {
                writer: PROVISIONER,
                sequence: row.try_get(0)?,
                at: row.try_get(1)?,
                actor: row.try_get(2)?,
                request_id: row.try_get(3)?,
                action: row.try_get(4)?,
                workspace: row.try_get(5)?,
                subject: row.try_get(6)?,
                detail: row.try_get(7)?,
                revision: row.try_get(8)?,
            };
            let (stored_previous, stored): (&[u8], &[u8]) = (row.try_get(9)?, row.try_get(10)?);
            sequence += 1;
            if record.sequence != sequence || stored_previous != previous || record.hash(&previous) != stored {
                return Ok(ChainCheck::Broken { sequence });
            }
            previous = stored.to_vec();
        }
    }
    let head = transaction
        .query_opt("SELECT sequence, hash FROM catalog.audit_head WHERE writer = $1", &[&PROVISIONER])
        .await?;
    let (head_sequence, head_hash) = match &head {
        Some(row) => (row.try_get(0)?, row.try_get::<_, &[u8]>(1)?),
        None => (0i64, CHAIN_START.as_slice()),
    };
    let whole = head_sequence == sequence && head_hash == previous;
    Ok(if whole { ChainCheck::Intact { events: sequence } } else { ChainCheck::Broken { sequence: sequence + 1 } })
}
