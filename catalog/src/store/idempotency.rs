//! What the HTTP API remembers for `Idempotency-Key`: who works on a request, and what the answer was. No intent: no
//! revision, no audit; what the request does writes its own.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};

use super::Store;
use crate::{error::Result, seal::random_bytes};

/// How long nobody else may take over a request that has no answer yet: longer than any request should run. Who takes
/// over repeats work that is idempotent in itself.
const CLAIM: SignedDuration = SignedDuration::from_secs(60);
/// How long an answer is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// How often a claim that vanished under our eyes is tried for.
const TRIES: usize = 3;
/// Old answers forgotten at a time.
const FORGOTTEN_MAX: i64 = 10_000;

/// A request that carries a key.
#[derive(Debug, Clone, Copy)]
pub struct KeyedRequest<'a> {
    /// Who asks: the id of their API key.
    pub caller: &'a str,
    /// The header's value; only its digest is stored.
    pub key: &'a str,
    /// Everything that was asked: a repeat with another one is refused.
    pub request: &'a [u8],
}

/// Our right to answer a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim([u8; 16]);

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Nobody has it: answer it, then [`Store::remember_answer`] or [`Store::release_claim`].
    Ours(Claim),
    /// It was answered.
    Answered {
        /// The HTTP status, 200 to 299.
        status: u16,
        /// The body.
        answer: String,
    },
    /// Somebody works on it.
    Running,
    /// The key was used for something else.
    AnotherRequest,
}

impl Store {
    /// Claims a request, or tells why it is not ours to answer.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn claim_request(&self, request: &KeyedRequest<'_>, now: Timestamp) -> Result<Claimed> {
        let client = self.client().await?;
        let (key, asked) = (digest(&SHA256, request.key.as_bytes()), digest(&SHA256, request.request));
        let mut claim = [0; 16];
        random_bytes(&mut claim)?;
        // An answer that has expired is as good as none, and so is the claim of somebody who never came back.
        let take = "INSERT INTO catalog.idempotency AS known \
                    (caller, key_digest, request_digest, claim, claimed_until, expires_at) \
                    VALUES ($1, $2, $3, $4, $5, $6) \
                    ON CONFLICT (caller, key_digest) DO UPDATE SET request_digest = excluded.request_digest, \
                    claim = excluded.claim, claimed_until = excluded.claimed_until, \
                    expires_at = excluded.expires_at, status = NULL, answer = NULL \
                    WHERE known.expires_at <= $7 OR (known.status IS NULL AND known.claimed_until <= $7 \
                    AND known.request_digest = excluded.request_digest)";
        let look = "SELECT request_digest, status, answer FROM catalog.idempotency \
                    WHERE caller = $1 AND key_digest = $2";
        for _ in 0..TRIES {
            let taken = client
                .execute(
                    take,
                    &[
                        &request.caller,
                        &key.as_ref(),
                        &asked.as_ref(),
                        &claim.as_slice(),
                        &(now + CLAIM),
                        &(now + REMEMBERED),
                        &now,
                    ],
                )
                .await?;
            if taken == 1 {
                return Ok(Claimed::Ours(Claim(claim)));
            }
            let Some(row) = client.query_opt(look, &[&request.caller, &key.as_ref()]).await? else { continue };
            let (before, status): (&[u8], Option<i16>) = (row.try_get(0)?, row.try_get(1)?);
            if before != asked.as_ref() {
                return Ok(Claimed::AnotherRequest);
            }
            let Some(status) = status.and_then(|status| u16::try_from(status).ok()) else { break };
            return Ok(Claimed::Answered { status, answer: row.try_get(2)? });
        }
        Ok(Claimed::Running)
    }

    /// Remembers the answer to a request that is ours. Nothing happens if somebody took it over meanwhile.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn remember_answer(&self, claim: &Claim, status: u16, answer: &str) -> Result<()> {
        let sql = "UPDATE catalog.idempotency SET status = $2, answer = $3 WHERE claim = $1 AND status IS NULL";
        let status = i16::try_from(status).unwrap_or(i16::MAX);
        self.client().await?.execute(sql, &[&claim.0.as_slice(), &status, &answer]).await?;
        Ok(())
    }

    /// Gives a request back without an answer: it failed, and may be tried again at once.
    ///
    /// # Errors
    /// If the catalog is not available; the claim then ends by itself.
    pub async fn release_claim(&self, claim: &Claim) -> Result<()> {
        let sql = "DELETE FROM catalog.idempotency WHERE claim = $1 AND status IS NULL";
        self.client().await?.execute(sql, &[&claim.0.as_slice()]).await?;
        Ok(())
    }

    /// Forgets answers whose time is over.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn forget_old_answers(&self, now: Timestamp) -> Result<()> {
        let sql = "DELETE FROM catalog.idempotency WHERE ctid = ANY (ARRAY( \
                   SELECT ctid FROM catalog.idempotency WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))";
        self.client().await?.execute(sql, &[&now, &FORGOTTEN_MAX]).await?;
        Ok(())
    }
}
