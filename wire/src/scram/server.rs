//! The server's side: checks a client's proof against stored verifiers.
//!
//! Whether the login exists, which of its verifiers matched, or that there is none, must not show in the time it takes:
//! every exchange does the work of [`VERIFIERS_TRIED`] verifiers, and the result is chosen without a branch.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::attributes::{Attributes, check_nonce};
use super::keys::{KEY_BYTES, hmac_sha256, sha256, xor};
use super::{
    ChannelBinding, SCRAM_SHA_256_PLUS, ScramError, Verifier, channel_binding_input, mechanisms, message_text,
};

/// How many verifiers are tried at least: a login has at most two alive, so all logins take the same time.
const VERIFIERS_TRIED: usize = 2;

/// An exchange that has answered the client's first message.
pub struct ServerExchange {
    /// client-first-message-bare.
    client_first_bare: String,
    /// server-first-message.
    server_first: String,
    /// The client's nonce, continued by ours.
    nonce: String,
    /// What the client must send as `c=`.
    binding_input: String,
}

impl ServerExchange {
    /// Reads the client's first message; gives the exchange and the server's first message.
    ///
    /// `salt` and `iterations` are those of the login's verifiers (for an unknown user: stable ones), `nonce` is fresh
    /// for each exchange, see [`random_nonce`](super::random_nonce).
    ///
    /// # Errors
    /// A mechanism that was not offered, a message that is malformed or too long, an authorization identity, a mandatory
    /// extension, channel binding that does not fit the mechanism, and a client that believes that none was offered.
    pub fn start(
        mechanism: &str,
        client_first: &[u8],
        binding: &ChannelBinding,
        salt: &[u8],
        iterations: u32,
        nonce: &str,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        if !mechanisms(binding).contains(&mechanism) {
            return Err(ScramError::Mechanism);
        }
        check_nonce(nonce)?;
        let text = message_text(client_first)?;
        let (gs2_header, bare) = split_gs2_header(text, mechanism, binding)?;
        let nonce = format!("{}{nonce}", client_nonce(bare)?);
        let server_first = format!("r={nonce},s={},i={iterations}", STANDARD.encode(salt));
        let answer = server_first.clone().into_bytes();
        let exchange = ServerExchange {
            client_first_bare: bare.to_owned(),
            server_first,
            nonce,
            binding_input: channel_binding_input(gs2_header, binding),
        };
        Ok((exchange, answer))
    }

    /// Checks the client's final message; gives the index of the verifier that matched and the server's final message.
    ///
    /// All `verifiers` are checked; with none the exchange fails after the same work.
    ///
    /// # Errors
    /// A malformed or too long message, another nonce or channel binding, and [`ScramError::Proof`] when no verifier
    /// matches.
    pub fn finish(&self, client_final: &[u8], verifiers: &[Verifier]) -> Result<(usize, Vec<u8>), ScramError> {
        let text = message_text(client_final)?;
        let (without_proof, proof) = self.check_final(text)?;
        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let (matched, server_key) = find(verifiers, auth_message.as_bytes(), &proof).ok_or(ScramError::Proof)?;
        let signature = hmac_sha256(&server_key[..], auth_message.as_bytes());
        Ok((matched, format!("v={}", STANDARD.encode(signature)).into_bytes()))
    }

    /// `c=…,r=…[,extensions],p=…`: gives what comes before the proof, and the proof.
    fn check_final<'a>(&self, text: &'a str) -> Result<(&'a str, [u8; KEY_BYTES]), ScramError> {
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let mut attributes = Attributes::new(without_proof);
        let binding = attributes.expect('c')?;
        let nonce = attributes.expect('r')?;
        attributes.skip_extensions()?;
        if !bool::from(binding.as_bytes().ct_eq(self.binding_input.as_bytes())) {
            return Err(ScramError::ChannelBinding);
        }
        if !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramError::Nonce);
        }
        let proof = STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok());
        Ok((without_proof, proof.ok_or(ScramError::Malformed("malformed proof"))?))
    }
}

/// Parts the header (`n,,` `y,,` or `p=tls-server-end-point,,`) from the bare message.
fn split_gs2_header<'a>(
    text: &'a str,
    mechanism: &str,
    binding: &ChannelBinding,
) -> Result<(&'a str, &'a str), ScramError> {
    let mut parts = text.splitn(3, ',');
    let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ScramError::Malformed("no header"));
    };
    check_binding_flag(flag, mechanism == SCRAM_SHA_256_PLUS, binding)?;
    match authzid {
        "" => Ok((&text[..text.len() - bare.len()], bare)),
        _ if authzid.starts_with("a=") => Err(ScramError::AuthorizationIdentity),
        _ => Err(ScramError::Malformed("unexpected attribute in header")),
    }
}

fn check_binding_flag(flag: &str, plus: bool, binding: &ChannelBinding) -> Result<(), ScramError> {
    match flag {
        "n" | "y" if plus => Err(ScramError::Malformed("no channel binding data")),
        "n" => Ok(()),
        "y" if *binding != ChannelBinding::None => Err(ScramError::Downgrade),
        "y" => Ok(()),
        _ => match flag.strip_prefix("p=") {
            None => Err(ScramError::Malformed("unexpected channel-binding flag")),
            Some(_) if !plus => Err(ScramError::Malformed("channel binding data without -PLUS")),
            Some("tls-server-end-point") => Ok(()),
            Some(_) => Err(ScramError::ChannelBindingType),
        },
    }
}

/// `n=<ignored>,r=<nonce>[,extensions]`: the user is the one in the StartupMessage, as in PostgreSQL.
fn client_nonce(bare: &str) -> Result<&str, ScramError> {
    let mut attributes = Attributes::new(bare);
    attributes.expect('n')?;
    let nonce = attributes.expect('r')?;
    check_nonce(nonce)?;
    attributes.skip_extensions()?;
    Ok(nonce)
}

/// The verifier that the proof was made for, without a branch on any of them.
fn find(
    verifiers: &[Verifier],
    auth_message: &[u8],
    proof: &[u8; KEY_BYTES],
) -> Option<(usize, Zeroizing<[u8; KEY_BYTES]>)> {
    let absent = Verifier { stored_key: [0; KEY_BYTES], server_key: [0; KEY_BYTES] };
    let mut found = Choice::from(0);
    let mut matched = 0_u64;
    let mut server_key = Zeroizing::new([0; KEY_BYTES]);
    for at in 0..verifiers.len().max(VERIFIERS_TRIED) {
        let (verifier, present) = match verifiers.get(at) {
            Some(verifier) => (verifier, Choice::from(1)),
            None => (&absent, Choice::from(0)),
        };
        let client_key = Zeroizing::new(xor(proof, &hmac_sha256(&verifier.stored_key, auth_message)));
        let first = sha256(&client_key[..]).ct_eq(&verifier.stored_key) & present & !found;
        found |= first;
        matched.conditional_assign(&(at as u64), first);
        for (kept, byte) in server_key.iter_mut().zip(&verifier.server_key) {
            kept.conditional_assign(byte, first);
        }
    }
    bool::from(found).then_some((matched as usize, server_key))
}
