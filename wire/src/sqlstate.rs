//! SQLSTATE codes: the five characters by which drivers tell one error from another.
//!
//! Only codes that the gate itself sends or looks for have a constant; any other code of a server passes through as it
//! is. See <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use std::fmt;

/// Five characters, each a digit or an upper-case letter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SqlState([u8; 5]);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: SqlState = SqlState(*$code);)*
            /// Every code that has a constant, for tests and documentation.
            pub const ALL: &'static [SqlState] = &[$(SqlState::$name),*];
        }
    };
}

states! {
    /// No error.
    SUCCESSFUL_COMPLETION = b"00000";
    /// A warning without a code of its own.
    WARNING = b"01000";
    /// The server cannot be reached.
    UNABLE_TO_ESTABLISH_CONNECTION = b"08001";
    /// The connection broke.
    CONNECTION_FAILURE = b"08006";
    /// A message that the protocol does not allow, at all or here.
    PROTOCOL_VIOLATION = b"08P01";
    /// Understood, and never supported.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// Text that is not valid in the encoding.
    CHARACTER_NOT_IN_REPERTOIRE = b"22021";
    /// A setting's value is not acceptable.
    INVALID_PARAMETER_VALUE = b"22023";
    /// Not possible inside a transaction block.
    ACTIVE_SQL_TRANSACTION = b"25001";
    /// The transaction has failed; only its end is accepted.
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    /// Idle inside a transaction for too long.
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    /// A transaction that was open for too long.
    TRANSACTION_TIMEOUT = b"25P04";
    /// The prepared statement does not exist.
    INVALID_SQL_STATEMENT_NAME = b"26000";
    /// The login may not do this here.
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    /// Password authentication failed.
    INVALID_PASSWORD = b"28P01";
    /// The cursor or portal does not exist.
    INVALID_CURSOR_NAME = b"34000";
    /// The database does not exist.
    INVALID_CATALOG_NAME = b"3D000";
    /// The role has not the privilege; also every refusal by a policy.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// The text does not parse.
    SYNTAX_ERROR = b"42601";
    /// A name that cannot be one.
    INVALID_NAME = b"42602";
    /// A name of more than 63 bytes.
    NAME_TOO_LONG = b"42622";
    /// The named object (a setting, for one) does not exist.
    UNDEFINED_OBJECT = b"42704";
    /// The cursor exists already.
    DUPLICATE_CURSOR = b"42P03";
    /// The prepared statement exists already.
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    /// Memory, or a budget of it, is used up.
    OUT_OF_MEMORY = b"53200";
    /// No connection is left.
    TOO_MANY_CONNECTIONS = b"53300";
    /// A configured limit was reached.
    CONFIGURATION_LIMIT_EXCEEDED = b"53400";
    /// Longer, larger or more than is possible.
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    /// A statement that is nested too deeply.
    STATEMENT_TOO_COMPLEX = b"54001";
    /// The object is in use.
    OBJECT_IN_USE = b"55006";
    /// The setting cannot be changed now.
    CANT_CHANGE_RUNTIME_PARAM = b"55P02";
    /// Cancelled by the user or by a time limit.
    QUERY_CANCELED = b"57014";
    /// The session was ended on purpose.
    ADMIN_SHUTDOWN = b"57P01";
    /// The server crashed.
    CRASH_SHUTDOWN = b"57P02";
    /// Starting, stopping, or nobody is free.
    CANNOT_CONNECT_NOW = b"57P03";
    /// Idle for too long.
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// Our own mistake.
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code in `text`, or `None` when it is not five digits or upper-case letters.
    pub const fn parse(text: &str) -> Option<SqlState> {
        let bytes = text.as_bytes();
        let mut code = [0; 5];
        if bytes.len() != code.len() {
            return None;
        }
        let mut at = 0;
        while at < code.len() {
            if !bytes[at].is_ascii_digit() && !bytes[at].is_ascii_uppercase() {
                return None;
            }
            code[at] = bytes[at];
            at += 1;
        }
        Some(SqlState(code))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        // Only ASCII can have been put in, so the fallback is never seen.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The first two characters, which name the class (`08` is a connection's, `42` a statement's).
    pub fn class(&self) -> &str {
        &self.as_str()[..2]
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_five_digits_or_upper_case_letters() {
        for (text, good) in [
            ("42501", true),
            ("08P01", true),
            ("XX000", true),
            ("", false),
            ("4250", false),
            ("425011", false),
            ("4250a", false),
            ("4250é", false),
            ("42 01", false),
            ("4250\0", false),
        ] {
            assert_eq!(SqlState::parse(text).is_some(), good, "{text:?}");
        }
    }

    #[test]
    fn constants_are_valid_and_distinct() {
        for (at, state) in SqlState::ALL.iter().enumerate() {
            assert_eq!(SqlState::parse(state.as_str()), Some(*state));
            assert!(!SqlState::ALL[..at].contains(state), "{state} twice");
            assert_eq!(state.class().len(), 2);
        }
    }
}
