//! Carries out a plan. Makes no choices: neighbouring steps that may share a transaction are sent as one text, in order.

use std::time::Duration;

use super::intent::Intent;
use super::observe::{self, Inside};
use super::step::{Place, Step};
use crate::server::{ServerAccess, ServerError, Session};

/// How often a batch is run again when it met somebody else's change of the same row of a shared catalog.
const ATTEMPTS: u32 = 6;

/// Carries out the steps.
///
/// Gives what the inside of the database looked like in the very transaction that laid it out, if one did.
///
/// # Errors
/// The first batch that fails; what was done before it stays and the next plan starts from there.
pub async fn apply(
    server: &ServerAccess,
    maintenance: &Session,
    intent: &Intent,
    steps: &[Step],
) -> Result<Option<Inside>, ServerError> {
    let mut laid_out = None;
    for batch in steps.chunk_by(|a, b| a.place() == Place::Server && b.place() == Place::Server) {
        let sql: String = batch.iter().map(|step| step.sql(intent)).collect();
        let place = batch.first().map_or(Place::Server, Step::place);
        match place {
            // One text of several statements is one transaction; a single one is its own.
            Place::Server | Place::ServerAlone => again(|| maintenance.run(doing(batch), &sql)).await?,
            Place::Workspace => {
                let session = Session::open(server, &intent.database).await?;
                laid_out = Some(again(|| lay_out(&session, intent, &sql)).await?);
            }
        }
    }
    Ok(laid_out)
}

async fn lay_out(session: &Session, intent: &Intent, sql: &str) -> Result<Inside, ServerError> {
    let laid = async {
        session.run("laying out the database", &format!("BEGIN;\n{sql}")).await?;
        let inside = observe::inside(session, intent).await?;
        session.run("laying out the database", "COMMIT").await?;
        Ok(inside)
    };
    let result = laid.await;
    if result.is_err() {
        // The session is used again for the next attempt; if this fails too, so will the attempt.
        let _ = session.run("giving up a change", "ROLLBACK").await;
    }
    result
}

fn doing(batch: &[Step]) -> &'static str {
    match batch.first() {
        Some(Step::CreateDatabase { .. }) => "creating the database",
        _ => "changing roles and privileges of the server",
    }
}

async fn again<T, F: Future<Output = Result<T, ServerError>>>(run: impl Fn() -> F) -> Result<T, ServerError> {
    let mut attempt = 1;
    loop {
        match run().await {
            Err(error) if error.is_race() && attempt < ATTEMPTS => {
                // Spread out those who met, longer each time: at most 6 × 40 ms.
                let random = aws_lc_rs::rand::generate(&aws_lc_rs::rand::SystemRandom::new());
                let jitter: [u8; 1] = random.map_or([0], |random| random.expose());
                let step = 5 + u64::from(jitter[0]) / 8;
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * step)).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}
