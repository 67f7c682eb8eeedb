//! The client's side, towards the servers behind the gate: with a password or with keys that were derived before.
//!
//! The server must prove itself too: an exchange is only good once [`AwaitingServerFinal::on_server_final`] said so.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::attributes::{Attributes, check_nonce};
use super::keys::{KEY_BYTES, derive, hmac_sha256, sha256, xor};
use super::{
    ChannelBinding, ITERATIONS_MAX, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, channel_binding_input, message_text,
};

/// By what a client proves itself. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub enum Credential {
    /// The password; costs a key derivation for each exchange.
    Password(String),
    /// Keys that were derived with the salt and iterations of the role's verifier; the server's salt is not looked at.
    Keys {
        /// As good as the password.
        client_key: [u8; KEY_BYTES],
        /// By which the server proves itself.
        server_key: [u8; KEY_BYTES],
    },
}

/// An exchange whose first message has been made.
pub struct ClientExchange {
    credential: Credential,
    /// client-first-message-bare.
    bare: String,
    nonce: String,
    /// What goes into `c=`.
    binding_input: String,
}

/// An exchange that has sent its proof and waits for the server's.
pub struct AwaitingServerFinal {
    server_signature: Zeroizing<[u8; KEY_BYTES]>,
}

impl ClientExchange {
    /// Chooses a mechanism from those offered; gives the exchange, the mechanism and the first message.
    ///
    /// `nonce` is fresh for each exchange. The user name stays empty: PostgreSQL takes it from the StartupMessage.
    ///
    /// # Errors
    /// [`ScramError::Mechanism`] when neither mechanism is offered; a nonce that cannot be one.
    pub fn start(
        credential: Credential,
        offered: &[&str],
        binding: &ChannelBinding,
        nonce: &str,
    ) -> Result<(Self, &'static str, Vec<u8>), ScramError> {
        check_nonce(nonce)?;
        let (mechanism, gs2_header) = choose(offered, binding)?;
        Ok(Self::begin(credential, mechanism, gs2_header, binding, "", nonce))
    }

    fn begin(
        credential: Credential,
        mechanism: &'static str,
        gs2_header: &str,
        binding: &ChannelBinding,
        user: &str,
        nonce: &str,
    ) -> (Self, &'static str, Vec<u8>) {
        let bare = format!("n={user},r={nonce}");
        let client_first = format!("{gs2_header}{bare}").into_bytes();
        let binding_input = channel_binding_input(gs2_header, binding);
        (ClientExchange { credential, bare, nonce: nonce.to_owned(), binding_input }, mechanism, client_first)
    }

    /// Answers the server's first message with the client's final one.
    ///
    /// # Errors
    /// A malformed or too long message, a nonce that does not continue ours, a mandatory extension, iterations outside
    /// 1..=[`ITERATIONS_MAX`].
    pub fn on_server_first(self, server_first: &[u8]) -> Result<(AwaitingServerFinal, Vec<u8>), ScramError> {
        let text = message_text(server_first)?;
        let ServerFirst { nonce, salt, iterations } = ServerFirst::parse(text, &self.nonce)?;
        let without_proof = format!("c={},r={nonce}", self.binding_input);
        let auth_message = format!("{},{text},{without_proof}", self.bare);
        let (client_key, server_key) = self.keys(&salt, iterations);
        let signature = hmac_sha256(&sha256(&client_key[..]), auth_message.as_bytes());
        let proof = xor(&client_key, &signature);
        let server_signature = Zeroizing::new(hmac_sha256(&server_key[..], auth_message.as_bytes()));
        let client_final = format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes();
        Ok((AwaitingServerFinal { server_signature }, client_final))
    }

    fn keys(&self, salt: &[u8], iterations: u32) -> (Zeroizing<[u8; KEY_BYTES]>, Zeroizing<[u8; KEY_BYTES]>) {
        match &self.credential {
            Credential::Keys { client_key, server_key } => (Zeroizing::new(*client_key), Zeroizing::new(*server_key)),
            Credential::Password(password) => {
                let keys = derive(password, salt, iterations);
                (Zeroizing::new(keys.client_key), Zeroizing::new(keys.server_key))
            }
        }
    }
}

impl AwaitingServerFinal {
    /// Checks that the server knows the verifier.
    ///
    /// # Errors
    /// [`ScramError::Rejected`] when it says so, [`ScramError::ServerSignature`] when it does not know it, and for a
    /// malformed or too long message.
    pub fn on_server_final(self, server_final: &[u8]) -> Result<(), ScramError> {
        let mut attributes = Attributes::new(message_text(server_final)?);
        let signature = match attributes.next()? {
            Some(('v', signature)) => signature,
            Some(('e', _)) => return Err(ScramError::Rejected),
            _ => return Err(ScramError::Malformed("no server signature")),
        };
        attributes.skip_extensions()?;
        let signature = STANDARD.decode(signature).map_err(|_| ScramError::Malformed("malformed server signature"))?;
        if bool::from(signature.as_slice().ct_eq(&self.server_signature[..])) {
            Ok(())
        } else {
            Err(ScramError::ServerSignature)
        }
    }
}

/// PLUS where both sides can; `y` tells the server that we could but it did not offer it, so that it notices when
/// somebody in between took the offer out.
fn choose(offered: &[&str], binding: &ChannelBinding) -> Result<(&'static str, &'static str), ScramError> {
    let bound = *binding != ChannelBinding::None;
    if bound && offered.contains(&SCRAM_SHA_256_PLUS) {
        Ok((SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"))
    } else if offered.contains(&SCRAM_SHA_256) {
        Ok((SCRAM_SHA_256, if bound { "y,," } else { "n,," }))
    } else {
        Err(ScramError::Mechanism)
    }
}

/// `r=<nonce>,s=<salt>,i=<iterations>[,extensions]`
struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    fn parse(text: &'a str, own_nonce: &str) -> Result<Self, ScramError> {
        let mut attributes = Attributes::new(text);
        let nonce = attributes.expect('r')?;
        let salt = attributes.expect('s')?;
        let iterations = attributes.expect('i')?;
        attributes.skip_extensions()?;
        check_nonce(nonce)?;
        match nonce.strip_prefix(own_nonce) {
            None | Some("") => return Err(ScramError::Nonce),
            Some(_) => {}
        }
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty());
        let iterations = iterations.parse().map_err(|_| ScramError::Iterations)?;
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(ScramError::Iterations);
        }
        Ok(ServerFirst { nonce, salt: salt.ok_or(ScramError::Malformed("malformed salt"))?, iterations })
    }
}
