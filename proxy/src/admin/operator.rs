//! The operator's key, and the rows that it opens.

use aws_lc_rs::{constant_time, digest};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use portcullis_config::Secret;
use serde::Serialize;

/// Whether the request carries `Authorization: Bearer <secret>`. Digests are compared, so that neither the length nor a
/// common beginning shows in the time that it takes.
pub fn bears(headers: &HeaderMap, secret: &Secret<String>) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, token)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return false };
    let digest_of = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    scheme.eq_ignore_ascii_case("bearer")
        && !secret.expose().is_empty()
        && constant_time::verify_slices_are_equal(digest_of(token.trim()).as_ref(), digest_of(secret.expose()).as_ref())
            .is_ok()
}

/// One pool, as `/pools` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct PoolRow {
    /// The server's id in the catalog.
    pub server: String,
    /// The real name of the database.
    pub database: String,
    /// The role that its connections act as.
    pub role: String,
    /// The backend credential's generation.
    pub generation: i32,
    /// Connections that sessions hold.
    pub active: u64,
    /// Connections that wait for work.
    pub idle: u64,
    /// Connections being opened.
    pub connecting: u64,
    /// Sessions that wait.
    pub waiters: u64,
    /// How long the first of them has waited, in milliseconds.
    pub oldest_wait_ms: u64,
}

/// One session, as `/sessions` shows it: never SQL, never a secret.
#[derive(Debug, Clone, Serialize)]
pub struct SessionRow {
    /// The session's number in this process, as log lines have it.
    pub id: u64,
    /// The workspace's id.
    pub workspace: String,
    /// The login's user name.
    pub username: String,
    /// The kind of the login.
    pub kind: String,
    /// The client's address.
    pub client: String,
    /// `idle`, `waiting`, `active`, `idle_in_transaction`, …
    pub state: &'static str,
    /// How long it has been in that state, in milliseconds.
    pub state_ms: u64,
    /// Why it is pinned to its upstream connection, if it is.
    pub pinned: Option<&'static str>,
    /// When it was opened, ISO 8601.
    pub opened_at: String,
    /// Statements so far.
    pub statements: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_is_exactly_the_secret() {
        let secret = Secret::new("right-key".to_owned());
        let rows: &[(&[&str], bool)] = &[
            (&["Bearer right-key"], true),
            (&["bearer right-key"], true),
            (&["Bearer right-key "], true),
            (&["Bearer right-ke"], false),
            (&["Bearer right-key2"], false),
            (&["Basic right-key"], false),
            (&["right-key"], false),
            (&["Bearer"], false),
            (&["Bearer "], false),
            (&[], false),
            (&["Bearer right-key", "Bearer right-key"], false),
        ];
        for (values, expect) in rows {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            });
            assert_eq!(bears(&headers, &secret), *expect, "{values:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, "Bearer ".parse().unwrap());
        assert!(!bears(&headers, &Secret::new(String::new())), "an empty key opens nothing");
    }
}
