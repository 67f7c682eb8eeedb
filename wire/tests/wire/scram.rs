//! SCRAM: the RFC's example, both sides against each other, and what a client or a server may try.

use portcullis_wire::SqlState;
use portcullis_wire::scram::{
    AwaitingServerFinal, ChannelBinding, ClientExchange, Credential, ITERATIONS_MAX, Keys, MESSAGE_BYTES_MAX,
    SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, ServerExchange, Verifier, derive, mechanisms, postgres_verifier,
    random_nonce,
};

/// RFC 7677, section 3.
const RFC_SALT: &[u8] = b"\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81";
const RFC_CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const RFC_SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const RFC_SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

/// For the corpus of the fuzzer.
pub const SEEDS: &[&str] = &[
    RFC_CLIENT_FIRST,
    RFC_SERVER_FIRST,
    RFC_CLIENT_FINAL,
    RFC_SERVER_FINAL,
    "y,,n=,r=abc",
    "p=tls-server-end-point,,n=,r=abc",
    "n,a=admin,n=,r=abc",
    "n,,m=ext,n=,r=abc",
    "e=other-error",
];

const SALT: &[u8] = b"0123456789abcdef";
const ITERATIONS: u32 = 16;

fn none() -> ChannelBinding {
    ChannelBinding::None
}

fn bound(byte: u8) -> ChannelBinding {
    ChannelBinding::TlsServerEndPoint(vec![byte; 32])
}

fn keys(password: &str) -> Keys {
    derive(password, SALT, ITERATIONS)
}

fn password(password: &str) -> Credential {
    Credential::Password(password.to_owned())
}

#[test]
fn the_example_of_rfc_7677() {
    let verifier = derive("pencil", RFC_SALT, 4096).verifier();
    let (exchange, server_first) =
        ServerExchange::start(SCRAM_SHA_256, RFC_CLIENT_FIRST.as_bytes(), &none(), RFC_SALT, 4096, RFC_SERVER_NONCE)
            .unwrap();
    assert_eq!(String::from_utf8(server_first).unwrap(), RFC_SERVER_FIRST);
    let (matched, server_final) = exchange.finish(RFC_CLIENT_FINAL.as_bytes(), &[verifier]).unwrap();
    assert_eq!((matched, &server_final[..]), (0, RFC_SERVER_FINAL.as_bytes()));
}

#[test]
fn a_verifier_has_postgresqls_form() {
    // The RFC's password, salt and iterations in the form of pg_authid.rolpassword.
    let keys = derive("pencil", RFC_SALT, 4096);
    assert_eq!(
        postgres_verifier(&keys, RFC_SALT, 4096),
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
         WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    );
}

#[test]
fn passwords_are_prepared_as_postgresql_does() {
    for (left, right, same) in [
        ("\u{2168}", "IX", true),              // NFKC: the Roman numeral nine
        ("a\u{ad}b", "ab", true),              // the soft hyphen is mapped to nothing
        ("a\u{a0}b", "a b", true),             // a space that is not ASCII
        ("\u{aa}", "a", true),                 // compatibility
        ("e\u{301}", "\u{e9}", true),          // composition
        ("\u{ad}", "", false),                 // would be empty: taken as it is
        ("\u{2168}\u{7}", "IX\u{7}", false),   // a control character is forbidden: taken as it is
        ("\u{627}1", "\u{627}\u{661}", false), // right-to-left text must end so: both taken as they are
        ("a", "A", false),
    ] {
        assert_eq!(keys(left).stored_key == keys(right).stored_key, same, "{left:?} and {right:?}");
    }
}

/// A whole exchange between both sides; gives the index that matched.
fn exchange(
    credential: Credential,
    client_binding: &ChannelBinding,
    server_binding: &ChannelBinding,
    verifiers: &[Verifier],
) -> Result<usize, ScramError> {
    let offered = mechanisms(server_binding);
    let (client, mechanism, client_first) = ClientExchange::start(credential, offered, client_binding, "clientnonce")?;
    let (server, server_first) =
        ServerExchange::start(mechanism, &client_first, server_binding, SALT, ITERATIONS, "servernonce")?;
    let (client, client_final): (AwaitingServerFinal, _) = client.on_server_first(&server_first)?;
    let (matched, server_final) = server.finish(&client_final, verifiers)?;
    client.on_server_final(&server_final)?;
    Ok(matched)
}

#[test]
fn both_sides_agree() {
    let (old, new) = (keys("old"), keys("new"));
    let fixed = |keys: &Keys| Credential::Keys { client_key: keys.client_key, server_key: keys.server_key };
    let both = [old.verifier(), new.verifier()];
    let many: Vec<_> = ["a", "b", "c", "new"].into_iter().map(|password| keys(password).verifier()).collect();
    let lie = Credential::Keys { client_key: new.client_key, server_key: old.server_key };
    for (what, credential, client, server, verifiers, result) in [
        ("plain", password("new"), none(), none(), &both[1..], Ok(0)),
        ("plus", password("new"), bound(1), bound(1), &both[1..], Ok(0)),
        ("server with TLS, client without", password("new"), none(), bound(1), &both[1..], Ok(0)),
        ("client with TLS, server without", password("new"), bound(1), none(), &both[1..], Ok(0)),
        ("the first of two", password("old"), none(), none(), &both, Ok(0)),
        ("the second of two", password("new"), none(), none(), &both, Ok(1)),
        ("the fourth of four", password("new"), bound(1), bound(1), &many, Ok(3)),
        ("fixed keys", fixed(&new), none(), none(), &both, Ok(1)),
        ("fixed keys, plus", fixed(&old), bound(2), bound(2), &both, Ok(0)),
        ("none of two", password("other"), none(), none(), &both, Err(ScramError::Proof)),
        ("no verifier", password("new"), none(), none(), &[], Err(ScramError::Proof)),
        ("a prefix", password("ne"), none(), none(), &both, Err(ScramError::Proof)),
        ("another certificate", password("new"), bound(1), bound(2), &both, Err(ScramError::ChannelBinding)),
        ("another server", lie, none(), none(), &both, Err(ScramError::ServerSignature)),
    ] {
        assert_eq!(exchange(credential, &client, &server, verifiers), result, "{what}");
    }
}

#[test]
fn an_absent_verifier_is_never_the_one_that_matches() {
    // The stand-in for a missing verifier has keys of zeros; a proof that fits them must not log in.
    let zeros = Verifier { stored_key: [0; 32], server_key: [0; 32] };
    let credential = || Credential::Keys { client_key: [0; 32], server_key: [0; 32] };
    for verifiers in [&[][..], std::slice::from_ref(&zeros)] {
        assert_eq!(exchange(credential(), &none(), &none(), verifiers), Err(ScramError::Proof));
    }
}

#[test]
fn mechanisms_follow_the_connection() {
    assert_eq!(mechanisms(&none()), [SCRAM_SHA_256]);
    assert_eq!(mechanisms(&bound(1)), [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
    for (offered, binding, chosen, header) in [
        (&[SCRAM_SHA_256][..], none(), Ok(SCRAM_SHA_256), "n,,"),
        (&[SCRAM_SHA_256_PLUS, SCRAM_SHA_256], none(), Ok(SCRAM_SHA_256), "n,,"),
        (&[SCRAM_SHA_256, SCRAM_SHA_256_PLUS], bound(1), Ok(SCRAM_SHA_256_PLUS), "p=tls-server-end-point,,"),
        (&[SCRAM_SHA_256], bound(1), Ok(SCRAM_SHA_256), "y,,"),
        (&[SCRAM_SHA_256_PLUS], none(), Err(ScramError::Mechanism), ""),
        (&["SCRAM-SHA-1"], bound(1), Err(ScramError::Mechanism), ""),
        (&[], none(), Err(ScramError::Mechanism), ""),
    ] {
        let started = ClientExchange::start(password("x"), offered, &binding, "abc");
        match started {
            Ok((_, mechanism, first)) => {
                assert_eq!(Ok(mechanism), chosen, "{offered:?}");
                assert_eq!(String::from_utf8(first).unwrap(), format!("{header}n=,r=abc"));
            }
            Err(error) => assert_eq!(Err(error), chosen, "{offered:?}"),
        }
    }
}

#[test]
fn a_clients_first_message_is_read_strictly() {
    use ScramError::*;
    const BAD: ScramError = Malformed("");
    let long = format!("n,,n=,r={}", "x".repeat(MESSAGE_BYTES_MAX));
    let fits = format!("n,,n=,r={}", "x".repeat(MESSAGE_BYTES_MAX - 8));
    for (mechanism, binding, message, result) in [
        (SCRAM_SHA_256, none(), "n,,n=,r=abc", Ok(())),
        (SCRAM_SHA_256, none(), "n,,n=someone,r=abc", Ok(())),
        (SCRAM_SHA_256, none(), "n,,n=*,r=abc", Ok(())),
        (SCRAM_SHA_256, none(), "n,,n=ü=2C=3D,r=abc", Ok(())),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc,x=ignored", Ok(())),
        (SCRAM_SHA_256, none(), "y,,n=,r=abc", Ok(())),
        (SCRAM_SHA_256, bound(1), "n,,n=,r=abc", Ok(())),
        (SCRAM_SHA_256, none(), &fits, Ok(())),
        (SCRAM_SHA_256_PLUS, bound(1), "p=tls-server-end-point,,n=,r=abc", Ok(())),
        // Channel binding.
        (SCRAM_SHA_256, bound(1), "y,,n=,r=abc", Err(Downgrade)),
        (SCRAM_SHA_256_PLUS, bound(1), "n,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256_PLUS, bound(1), "y,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256, bound(1), "p=tls-server-end-point,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256, none(), "p=tls-server-end-point,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256_PLUS, bound(1), "p=tls-unique,,n=,r=abc", Err(ChannelBindingType)),
        (SCRAM_SHA_256_PLUS, bound(1), "p=tls-exporter,,n=,r=abc", Err(ChannelBindingType)),
        (SCRAM_SHA_256_PLUS, bound(1), "p=,,n=,r=abc", Err(ChannelBindingType)),
        (SCRAM_SHA_256_PLUS, bound(1), "p,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256_PLUS, bound(1), "P=tls-server-end-point,,n=,r=abc", Err(BAD)),
        // Mechanisms.
        (SCRAM_SHA_256_PLUS, none(), "p=tls-server-end-point,,n=,r=abc", Err(Mechanism)),
        ("SCRAM-SHA-1", none(), "n,,n=,r=abc", Err(Mechanism)),
        ("scram-sha-256", none(), "n,,n=,r=abc", Err(Mechanism)),
        ("", none(), "n,,n=,r=abc", Err(Mechanism)),
        // What is not supported.
        (SCRAM_SHA_256, none(), "n,a=admin,n=,r=abc", Err(AuthorizationIdentity)),
        (SCRAM_SHA_256, none(), "n,a=,n=,r=abc", Err(AuthorizationIdentity)),
        (SCRAM_SHA_256, none(), "n,,m=ext,n=,r=abc", Err(MandatoryExtension)),
        (SCRAM_SHA_256, none(), "n,,n=,m=ext,r=abc", Err(MandatoryExtension)),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc,m=ext", Err(MandatoryExtension)),
        // What is not the message.
        (SCRAM_SHA_256, none(), "", Err(BAD)),
        (SCRAM_SHA_256, none(), "n", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,", Err(BAD)),
        (SCRAM_SHA_256, none(), "x,,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,b=x,n=,r=abc", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,r=abc", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,r=abc,n=", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=ab c", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=ab\u{7f}", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=é", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc,", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc,x", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc,1=x", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=,r=abc\0", Err(BAD)),
        (SCRAM_SHA_256, none(), "n,,n=\0,r=abc", Err(BAD)),
        (SCRAM_SHA_256, none(), &long, Err(TooLong)),
    ] {
        let found = ServerExchange::start(mechanism, message.as_bytes(), &binding, SALT, ITERATIONS, "nonce");
        assert_same(found.map(|_| ()), result, message);
    }
    let not_utf8 = ServerExchange::start(SCRAM_SHA_256, b"n,,n=\xff,r=abc", &none(), SALT, ITERATIONS, "nonce");
    assert_same(not_utf8.map(|_| ()), Err(BAD), "not UTF-8");
    for nonce in ["", "a,b", "a b", "é"] {
        let found = ServerExchange::start(SCRAM_SHA_256, b"n,,n=,r=abc", &none(), SALT, ITERATIONS, nonce);
        assert!(found.is_err(), "our own nonce {nonce:?}");
    }
}

/// Equal but for the words of `Malformed`.
fn assert_same(found: Result<(), ScramError>, expected: Result<(), ScramError>, what: &str) {
    match (found, expected) {
        (Err(ScramError::Malformed(_)), Err(ScramError::Malformed(_))) => {}
        (found, expected) => assert_eq!(found, expected, "{what}"),
    }
}

#[test]
fn a_clients_final_message_is_read_strictly() {
    use ScramError::*;
    const BAD: ScramError = Malformed("");
    let verifier = [derive("pencil", RFC_SALT, 4096).verifier()];
    let good = RFC_CLIENT_FINAL;
    let proof = "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    for (what, message, result) in [
        ("good", good.to_owned(), Ok(())),
        ("proof tampered", good.replace("p=dH", "p=eH"), Err(Proof)),
        ("proof of zeros", format!("c=biws,{nonce},p={}=", "A".repeat(43)), Err(Proof)),
        ("extension added", format!("c=biws,{nonce},x=y,{proof}"), Err(Proof)),
        ("nonce tampered", good.replace("$k0", "$k1"), Err(Nonce)),
        ("nonce longer", good.replace("$k0", "$k00"), Err(Nonce)),
        ("nonce shorter", good.replace("$k0", "$k"), Err(Nonce)),
        ("the client's nonce alone", format!("c=biws,r=rOprNGfwEbeRWgbNEkqO,{proof}"), Err(Nonce)),
        ("nonce empty", format!("c=biws,r=,{proof}"), Err(Nonce)),
        ("binding of y", good.replace("biws", "eSws"), Err(ChannelBinding)),
        ("binding empty", good.replace("biws", ""), Err(ChannelBinding)),
        ("binding with data", good.replace("biws", "biwsQUFB"), Err(ChannelBinding)),
        ("binding with an authzid", good.replace("biws", "bixhPXgs"), Err(ChannelBinding)),
        ("binding spelled otherwise", good.replace("biws", "biw="), Err(ChannelBinding)),
        ("mandatory extension", format!("c=biws,{nonce},m=x,{proof}"), Err(MandatoryExtension)),
        ("mandatory extension first", format!("m=x,c=biws,{nonce},{proof}"), Err(MandatoryExtension)),
        ("no proof", format!("c=biws,{nonce}"), Err(BAD)),
        ("empty proof", format!("c=biws,{nonce},p="), Err(BAD)),
        ("short proof", format!("c=biws,{nonce},p=AAAA"), Err(BAD)),
        ("long proof", format!("c=biws,{nonce},p={}", "A".repeat(48)), Err(BAD)),
        ("proof not base64", format!("c=biws,{nonce},p=***"), Err(BAD)),
        ("proof without padding", good.trim_end_matches('=').to_owned(), Err(BAD)),
        ("something behind the proof", format!("{good},x=y"), Err(BAD)),
        ("white space", format!("{good} "), Err(BAD)),
        ("two proofs", format!("{good},{proof}"), Err(BAD)),
        ("no binding", format!("{nonce},{proof}"), Err(BAD)),
        ("no nonce", format!("c=biws,{proof}"), Err(BAD)),
        ("other order", format!("{nonce},c=biws,{proof}"), Err(BAD)),
        ("empty", String::new(), Err(BAD)),
        ("NUL at the end", format!("{good}\0"), Err(BAD)),
        ("too long", format!("c=biws,{nonce},x={},{proof}", "x".repeat(MESSAGE_BYTES_MAX)), Err(TooLong)),
    ] {
        let first = RFC_CLIENT_FIRST.as_bytes();
        let (exchange, _) =
            ServerExchange::start(SCRAM_SHA_256, first, &none(), RFC_SALT, 4096, RFC_SERVER_NONCE).unwrap();
        let found = exchange.finish(message.as_bytes(), &verifier).map(|_| ());
        // Two proofs: the last one counts, so the first is an attribute where none of that name may be.
        if what == "two proofs" {
            assert!(found.is_err(), "{what}");
        } else {
            assert_same(found, result, what);
        }
    }
    for end in 0..good.len() {
        let first = RFC_CLIENT_FIRST.as_bytes();
        let (exchange, _) =
            ServerExchange::start(SCRAM_SHA_256, first, &none(), RFC_SALT, 4096, RFC_SERVER_NONCE).unwrap();
        assert!(exchange.finish(&good.as_bytes()[..end], &verifier).is_err(), "cut at {end}");
    }
}

#[test]
fn a_servers_first_message_is_read_strictly() {
    use ScramError::*;
    const BAD: ScramError = Malformed("");
    let many = format!("r=abcx,s=AAAA,i={}", u64::from(ITERATIONS_MAX) + 1);
    let long = format!("r=abcx,s={},i=1", "A".repeat(MESSAGE_BYTES_MAX));
    for (message, result) in [
        ("r=abcx,s=AAAA,i=1", Ok(())),
        ("r=abcx,s=AAAA,i=1,x=ignored", Ok(())),
        ("r=abc,s=AAAA,i=1", Err(Nonce)),
        ("r=abdx,s=AAAA,i=1", Err(Nonce)),
        ("r=xabc,s=AAAA,i=1", Err(Nonce)),
        ("r=,s=AAAA,i=1", Err(BAD)),
        ("r=abc x,s=AAAA,i=1", Err(BAD)),
        ("r=abcx,s=,i=1", Err(BAD)),
        ("r=abcx,s=AAA,i=1", Err(BAD)),
        ("r=abcx,s=*,i=1", Err(BAD)),
        ("r=abcx,s=AAAA,i=0", Err(Iterations)),
        ("r=abcx,s=AAAA,i=-1", Err(Iterations)),
        ("r=abcx,s=AAAA,i=", Err(Iterations)),
        ("r=abcx,s=AAAA,i=x", Err(Iterations)),
        ("r=abcx,s=AAAA,i=99999999999999999999", Err(Iterations)),
        (&many, Err(Iterations)),
        ("m=x,r=abcx,s=AAAA,i=1", Err(MandatoryExtension)),
        ("r=abcx,s=AAAA,i=1,m=x", Err(MandatoryExtension)),
        ("s=AAAA,r=abcx,i=1", Err(BAD)),
        ("r=abcx,s=AAAA", Err(BAD)),
        ("r=abcx", Err(BAD)),
        ("", Err(BAD)),
        ("e=other-error", Err(BAD)),
        (&long, Err(TooLong)),
    ] {
        let (exchange, _, _) = ClientExchange::start(password("x"), &[SCRAM_SHA_256], &none(), "abc").unwrap();
        assert_same(exchange.on_server_first(message.as_bytes()).map(|_| ()), result, message);
    }
}

#[test]
fn a_servers_final_message_must_prove_the_server() {
    use ScramError::*;
    for (message, result) in [
        ("v=AAAA", Err(ServerSignature)),
        ("v=", Err(ServerSignature)),
        ("v=*", Err(Malformed(""))),
        ("e=invalid-proof", Err(Rejected)),
        ("", Err(Malformed(""))),
        ("x=y", Err(Malformed(""))),
        ("m=y", Err(Malformed(""))),
    ] {
        let (exchange, _, _) = ClientExchange::start(password("x"), &[SCRAM_SHA_256], &none(), "abc").unwrap();
        let (exchange, _) = exchange.on_server_first(b"r=abcx,s=AAAA,i=1").unwrap();
        assert_same(exchange.on_server_final(message.as_bytes()), result, message);
    }
}

#[test]
fn every_failure_has_postgresqls_code() {
    for (error, sqlstate) in [
        (ScramError::Mechanism, SqlState::PROTOCOL_VIOLATION),
        (ScramError::TooLong, SqlState::PROTOCOL_VIOLATION),
        (ScramError::Malformed("x"), SqlState::PROTOCOL_VIOLATION),
        (ScramError::Nonce, SqlState::PROTOCOL_VIOLATION),
        (ScramError::ChannelBindingType, SqlState::PROTOCOL_VIOLATION),
        (ScramError::AuthorizationIdentity, SqlState::FEATURE_NOT_SUPPORTED),
        (ScramError::MandatoryExtension, SqlState::FEATURE_NOT_SUPPORTED),
        (ScramError::Downgrade, SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        (ScramError::ChannelBinding, SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        (ScramError::Proof, SqlState::INVALID_PASSWORD),
    ] {
        assert_eq!(error.sqlstate(), sqlstate, "{error}");
    }
}

#[test]
fn nonces_are_fresh_and_usable() {
    let (left, right) = (random_nonce().unwrap(), random_nonce().unwrap());
    assert_ne!(left, right);
    assert_eq!(left.len(), 24);
    assert!(ClientExchange::start(password("x"), &[SCRAM_SHA_256], &none(), &left).is_ok());
}
