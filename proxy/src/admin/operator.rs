//! The operator's key, and the rows that it opens.

use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use portcullis_config::Secret;
use serde::Serialize;

use crate::pool::Order;

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

/// What an order may wait for by default, and at most.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);
const PATIENCE_MAX_MS: u64 = 300_000;
/// What is expected.
pub const PATIENCE: &str = "timeout_ms must be a whole number from 0 to 300000, and nothing else may be given.";

/// The workspace and the order in `/workspaces/{id or name}/{order}`.
pub fn order(path: &str) -> Option<(String, Order)> {
    let (workspace, order) = path.strip_prefix("/workspaces/")?.split_once('/')?;
    Some((decoded(workspace)?, Order::named(order)?))
}

/// How long an order may wait, by the query of its path.
pub fn patience(query: Option<&str>) -> Option<Duration> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Some(PATIENCE_DEFAULT) };
    let ms = query.strip_prefix("timeout_ms=")?.parse().ok().filter(|ms| *ms <= PATIENCE_MAX_MS)?;
    Some(Duration::from_millis(ms))
}

/// A part of a path without its percent-encoding.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// One pool, as `/pools` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct PoolRow {
    /// The server's id in the catalog.
    pub server: String,
    /// The workspace's id.
    pub workspace: String,
    /// The real name of the database.
    pub database: String,
    /// The role that its connections act as.
    pub role: String,
    /// The backend credential's generation.
    pub generation: i32,
    /// Whether the workspace is paused: its sessions wait.
    pub paused: bool,
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
    fn an_order_is_one_workspace_and_one_word() {
        for (path, expect) in [
            ("/workspaces/acme/pause", Some(("acme", Order::Pause))),
            ("/workspaces/ws_0123456789abcdef/resume", Some(("ws_0123456789abcdef", Order::Resume))),
            ("/workspaces/a%20b%2fc%C3%A9/reconnect", Some(("a b/c\u{e9}", Order::Reconnect))),
            ("/workspaces/acme/kill", Some(("acme", Order::Kill))),
            ("/workspaces/acme/kill/", None),
            ("/workspaces/acme/queries", None),
            ("/workspaces/acme", None),
            ("/workspaces/%2/kill", None),
            ("/workspaces/%ff/kill", None),
            ("/api/workspaces/acme/kill", None),
        ] {
            let expect = expect.map(|(workspace, order)| (workspace.to_owned(), order));
            assert_eq!(order(path), expect, "{path}");
        }
        for (query, expect) in [
            (None, Some(30_000)),
            (Some(""), Some(30_000)),
            (Some("timeout_ms=0"), Some(0)),
            (Some("timeout_ms=300000"), Some(300_000)),
            (Some("timeout_ms=300001"), None),
            (Some("timeout_ms=-1"), None),
            (Some("timeout_ms=1s"), None),
            (Some("timeout=1"), None),
            (Some("timeout_ms=1&x=1"), None),
        ] {
            assert_eq!(patience(query), expect.map(Duration::from_millis), "{query:?}");
        }
    }

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
