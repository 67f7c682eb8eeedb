//! `tls-server-end-point`: the hash of the server's certificate that SCRAM-SHA-256-PLUS binds to
//! (RFC 5929, section 4.1; <https://www.postgresql.org/docs/current/sasl-authentication.html>).

use aws_lc_rs::digest;
use x509_parser::prelude::{AlgorithmIdentifier, FromDer as _, X509Certificate};
use x509_parser::signature_algorithm::RsaSsaPssParams;

/// The hash of `certificate` (DER) under the hash function of its own signature; SHA-256 in place of MD5 and SHA-1.
/// None where the signature has no single hash function (Ed25519, Ed448) or one that we do not know.
pub fn server_end_point(signature: &AlgorithmIdentifier<'_>, certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = match signature.algorithm.to_id_string().as_str() {
        // RSASSA-PSS names its hash in its parameters.
        "1.2.840.113549.1.1.10" => {
            let parameters = RsaSsaPssParams::try_from(signature.parameters.as_ref()?).ok()?;
            hash_by_oid(&parameters.hash_algorithm_oid().to_id_string())?
        }
        oid => hash_of_signature(oid)?,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The same of a certificate that somebody else presented.
pub fn server_end_point_of(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    server_end_point(&parsed.signature_algorithm, certificate)
}

/// RFC 3279, RFC 4055, RFC 5758.
fn hash_of_signature(oid: &str) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        // md5WithRSA, sha1WithRSA, ecdsa-with-SHA1, dsa-with-sha1: replaced, as the RFC says.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" => &digest::SHA256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &digest::SHA224,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    })
}

fn hash_by_oid(oid: &str) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "2.16.840.1.101.3.4.2.4" => &digest::SHA224,
        "2.16.840.1.101.3.4.2.2" => &digest::SHA384,
        "2.16.840.1.101.3.4.2.3" => &digest::SHA512,
        _ => return None,
    })
}
