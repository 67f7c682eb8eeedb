//! Names of things in the catalog. Parsed once, at the edge; a value of one of these types is well formed.

use std::{fmt, sync::Arc};

use crate::error::{CatalogError, Result};

/// Declares an identifier of the form `<prefix>_<16 lower-case hexadecimal digits>`.
macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new one, from 64 random bits.
            ///
            /// # Errors
            /// Only if the system's random generator fails.
            pub fn random() -> Result<Self> {
                let mut bytes = [0u8; 8];
                crate::seal::random_bytes(&mut bytes)?;
                Ok(Self(format!(concat!($prefix, "_{:016x}"), u64::from_be_bytes(bytes)).into()))
            }

            /// Accepts exactly the form that [`Self::random`] makes.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix(concat!($prefix, "_"))?;
                let hexadecimal = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                (digits.len() == 16 && hexadecimal).then(|| Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The 16 hexadecimal digits, without the prefix.
            pub fn digits(&self) -> &str {
                &self.0[concat!($prefix, "_").len()..]
            }

            pub(crate) fn from_column(text: &str) -> Result<Self> {
                Self::parse(text).ok_or(CatalogError::Corrupt { what: stringify!($name) })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

opaque_id!(
    /// A workspace: `ws_` and 16 hexadecimal digits.
    WorkspaceId,
    "ws"
);
opaque_id!(
    /// A login of a workspace: `lg_` and 16 hexadecimal digits.
    LoginId,
    "lg"
);
opaque_id!(
    /// A key of the HTTP API: `pk_` and 16 hexadecimal digits.
    ApiKeyId,
    "pk"
);

/// A PostgreSQL server's name in the configuration, e.g. `main`; 1 to 40 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// The name, if it has 1 to 40 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        (1..=40).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn from_column(text: &str) -> Result<Self> {
        Self::parse(text).ok_or(CatalogError::Corrupt { what: "ServerId" })
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A state of the catalog. Revisions grow by one with every change and become visible in their order; 0 is the empty
/// catalog.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often a backend role's credential has been renewed; from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Generation(pub i32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn opaque_ids() {
        let id = WorkspaceId::random().unwrap();
        assert_eq!(WorkspaceId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(WorkspaceId::random().unwrap(), id);
        for wrong in [
            "",
            "ws_",
            "ws_0123",
            "ws_0123456789ABCDEF",
            "lg_0123456789abcdef",
            "ws_0123456789abcdef0",
            "ws_é123456789abcde",
        ] {
            assert_eq!(WorkspaceId::parse(wrong), None, "{wrong}");
        }
        assert_eq!(LoginId::parse("lg_0123456789abcdef").unwrap().digits(), "0123456789abcdef");
    }
}
