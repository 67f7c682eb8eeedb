//! Which header lines cross from one connection to the other.
//!
//! Hop-by-hop lines end here (RFC 9110, section 7.6.1), framing is made anew by hyper on each side, and nothing that
//! claims where a request came from gets through: the sidecar must never trust a line that any caller could have sent.

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};

const HOP_BY_HOP: [HeaderName; 9] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA, FORWARDED];

/// Names that some software takes for the caller's address, host or path.
const CLAIMS: [&str; 10] = [
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-original-host",
    "x-http-method-override",
    "x-request-id",
];

/// Names that no connection passes on, known by name only.
const OLD_HOP_BY_HOP: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// A request's lines, before they go to the sidecar.
pub fn strip_request(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(CONTENT_LENGTH);
    CLAIMS.iter().for_each(|name| drop(headers.remove(*name)));
    remove_if(headers, |name| name.starts_with("x-forwarded"));
}

/// An answer's lines, before they go to the caller. The length stays: it is also the answer to HEAD.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // What `Connection` names is hop-by-hop too, whatever it is; but nobody may use that to take away credentials or the
    // host on the way.
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !matches!(name.as_str(), "host" | "authorization" | "content-type" | "idempotency-key"))
        .collect();
    remove_if(headers, |name| named.iter().any(|named| named == name));
    HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(name)));
    OLD_HOP_BY_HOP.iter().for_each(|name| drop(headers.remove(*name)));
}

fn remove_if(headers: &mut HeaderMap, condition: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| condition(name.as_str())).cloned().collect();
    names.into_iter().for_each(|name| drop(headers.remove(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_crosses_to_the_sidecar() {
        let rows: &[(&str, &str, bool)] = &[
            ("authorization", "Bearer k", true),
            ("host", "gate", true),
            ("x-workspace", "w", true),
            ("idempotency-key", "1", true),
            ("accept", "*/*", true),
            ("content-type", "application/json", true),
            ("forwarded", "for=1.2.3.4", false),
            ("x-forwarded-for", "1.2.3.4", false),
            ("x-forwarded-proto", "https", false),
            ("x-forwarded-anything", "1", false),
            ("x-real-ip", "1.2.3.4", false),
            ("x-http-method-override", "DELETE", false),
            ("keep-alive", "5", false),
            ("proxy-authorization", "Basic x", false),
            ("te", "trailers", false),
            ("transfer-encoding", "chunked", false),
            ("content-length", "5", false),
            ("upgrade", "websocket", false),
            ("expect", "100-continue", false),
            ("x-named", "1", false),
        ];
        let lines: Vec<_> = rows.iter().map(|(name, value, _)| (*name, *value)).collect();
        let mut headers = of(&lines);
        headers.append(CONNECTION, "close, X-Named".parse().unwrap());
        headers.append(CONNECTION, "authorization, host".parse().unwrap());
        strip_request(&mut headers);
        for (name, _, crosses) in rows {
            assert_eq!(headers.contains_key(*name), *crosses, "{name}");
        }
        assert!(!headers.contains_key(CONNECTION));
    }

    #[test]
    fn what_comes_back() {
        let mut headers =
            of(&[("content-length", "5"), ("connection", "x-a"), ("x-a", "1"), ("keep-alive", "5"), ("x-b", "1")]);
        strip_response(&mut headers);
        assert_eq!(headers, of(&[("content-length", "5"), ("x-b", "1")]));
    }
}
