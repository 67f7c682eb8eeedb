//! JSON bodies: every member is asked for by name, and what nobody asked for is refused by name.
//!
//! Written out instead of derived so that *all* unknown members are named, and so that a wrong type is told in the
//! API's words and not in the parser's.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde_json::{Map, Value, json};

use super::error::{Code, Problem};

/// A request's body being read.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Parses a body. An empty one is an object without members.
    ///
    /// # Errors
    /// When it is too long or no JSON object.
    pub fn parse(body: Result<Bytes, BytesRejection>) -> Result<Fields, Problem> {
        let body = body.map_err(|rejection| match rejection.status().as_u16() {
            413 => Problem::new(Code::TooLong, "The request's body is too long."),
            _ => Problem::new(Code::BadRequest, "The request's body could not be read."),
        })?;
        let left = if body.iter().all(u8::is_ascii_whitespace) {
            Map::new()
        } else {
            match serde_json::from_slice(&body) {
                Ok(Value::Object(members)) => members,
                Ok(_) => return Err(Problem::new(Code::BadRequest, "The body must be a JSON object.")),
                Err(error) => {
                    let place = format!("line {}, column {}", error.line(), error.column());
                    return Err(Problem::new(Code::BadRequest, format!("The body is not valid JSON ({place}).")));
                }
            }
        };
        Ok(Fields { left, known: Vec::new() })
    }

    /// A text; absent and `null` are the same.
    ///
    /// # Errors
    /// When it is there and no text.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        self.known.push(name);
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(Code::BadRequest, name, "must be a string")),
        }
    }

    /// A text that has to be there.
    ///
    /// # Errors
    /// When it is not there or no text.
    pub fn required_text(&mut self, name: &'static str) -> Result<String, Problem> {
        self.text(name)?.ok_or_else(|| wrong(Code::BadRequest, name, "is required"))
    }

    /// `true` or `false`; `false` where absent.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        self.known.push(name);
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(wrong(Code::BadRequest, name, "must be true or false")),
        }
    }

    /// An integer from 0 to `max`; 0 where absent.
    ///
    /// # Errors
    /// 422 when it is out of bounds or no integer.
    pub fn integer(&mut self, name: &'static str, max: u64) -> Result<u64, Problem> {
        self.known.push(name);
        let refuse = || wrong(Code::Invalid, name, &format!("must be an integer from 0 to {max}"));
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(0),
            Some(value) => value.as_u64().filter(|number| *number <= max).ok_or_else(refuse),
        }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// Names every member that nobody asked for.
    pub fn end(self) -> Result<(), Problem> {
        if self.left.is_empty() {
            return Ok(());
        }
        let unknown: Vec<String> = self.left.keys().cloned().collect();
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        let text = format!("Unknown fields in the body: {}. Known ones: {known}.", unknown.join(", "));
        Err(Problem::new(Code::BadRequest, text).with("unknown_fields", json!(unknown)))
    }
}

fn wrong(code: Code, name: &str, what: &str) -> Problem {
    Problem::new(code, format!("`{name}` {what}.")).with("field", json!(name))
}
