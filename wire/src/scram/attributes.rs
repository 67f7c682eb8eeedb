//! The attributes of a SCRAM message: `letter=value`, parted by commas (RFC 5802, section 5.1 and 7).
//!
//! A value has no comma in it, so cutting at commas is exact. Nothing here knows what an attribute means.

use super::ScramError;

/// The attributes of a message, from front to back.
pub(super) struct Attributes<'a> {
    /// `None` behind the last one.
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Attributes { rest: Some(text) }
    }

    /// The next attribute, if there is one: a letter and its value.
    pub(super) fn next(&mut self) -> Result<Option<(char, &'a str)>, ScramError> {
        let Some(rest) = self.rest else { return Ok(None) };
        let (attribute, rest) = match rest.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        let mut characters = attribute.chars();
        match (characters.next(), characters.next()) {
            (Some(letter), Some('=')) if letter.is_ascii_alphabetic() => Ok(Some((letter, characters.as_str()))),
            _ => Err(ScramError::Malformed("attribute expected")),
        }
    }

    /// The value of the next attribute, which must be this one.
    pub(super) fn expect(&mut self, letter: char) -> Result<&'a str, ScramError> {
        match self.next()? {
            Some((found, value)) if found == letter => Ok(value),
            Some(('m', _)) => Err(ScramError::MandatoryExtension),
            _ => Err(ScramError::Malformed("another attribute expected")),
        }
    }

    /// Reads optional extensions to the end of the message; they mean nothing to us.
    pub(super) fn skip_extensions(&mut self) -> Result<(), ScramError> {
        while let Some((letter, _)) = self.next()? {
            if letter == 'm' {
                return Err(ScramError::MandatoryExtension);
            }
        }
        Ok(())
    }
}

/// A nonce: printable ASCII without a comma, at least one character.
pub(super) fn check_nonce(nonce: &str) -> Result<(), ScramError> {
    if !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        Ok(())
    } else {
        Err(ScramError::Malformed("non-printable characters in SCRAM nonce"))
    }
}
