//! Conversations as text: what a client sends, one message per line, and what it hears, one word per message.
//!
//! A conversation that is held twice, through the gate and with PostgreSQL itself, needs no expectation: the gate has to
//! say what PostgreSQL says.
//!
//! ```text
//! Q text                    Query
//! P name | text             Parse
//! B portal | name | v | v   Bind, values as text, NULL for null
//! DS name, DP portal        Describe
//! E portal | rows           Execute
//! CS name, CP portal        Close
//! S, H                      Sync, Flush
//! d line\n, c, f reason     CopyData, CopyDone, CopyFail
//! wait Z                    reads up to the next message of this type before it sends more
//! ```

use std::{fmt::Write as _, io};

use bytes::{BufMut, BytesMut};

use crate::raw::{Message, Pipeline, Wire};

/// What no answer to a script's own messages contains.
const END: &str = "the end of this script";

/// Sends a script and gives all answers. A Sync and a Query at its end, not part of the answer, show where that is.
///
/// # Errors
/// When the connection ends before, with what was heard until then.
pub async fn hold(wire: &mut Wire, script: &str) -> Result<String, String> {
    hold_with(wire, script, async || {}).await
}

/// The same, with something to do after every `wait` that ends outside a transaction.
///
/// # Errors
/// When the connection ends before, with what was heard until then.
pub async fn hold_with(wire: &mut Wire, script: &str, mut pause: impl AsyncFnMut()) -> Result<String, String> {
    let mut heard = Vec::new();
    let mut out = BytesMut::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split_once(' ') {
            Some(("wait", tag)) => {
                let sent = wire.send(&std::mem::take(&mut out)).await;
                let until = |message: &Message| tag.as_bytes() == [message.tag];
                listen(wire, sent, &mut heard, until).await?;
                if heard.last().is_some_and(|last| last.tag == b'Z' && last.body == b"I") {
                    pause().await;
                }
            }
            _ => out.extend_from_slice(&bytes(line)),
        }
    }
    let end = format!("Q SELECT '{END}'");
    out.extend_from_slice(&[bytes("S"), bytes(&end)].concat());
    let sent = wire.send(&out).await;
    let is_end = |message: &Message| message.tag == b'D' && message.columns() == [Some(END.to_owned())];
    listen(wire, sent, &mut heard, is_end).await?;
    heard.truncate(heard.len() - 2); // its T and D
    let _ = listen(wire, Ok(()), &mut Vec::new(), |message| message.tag == b'Z').await;
    Ok(words(&heard))
}

async fn listen(
    wire: &mut Wire,
    sent: io::Result<()>,
    heard: &mut Vec<Message>,
    until: impl Fn(&Message) -> bool,
) -> Result<(), String> {
    loop {
        let message = match wire.next().await {
            Ok(message) => message,
            Err(error) => {
                let sent = sent.err().map(|error| format!(" (sending: {error})")).unwrap_or_default();
                return Err(format!("{} … {error}{sent}", words(heard)));
            }
        };
        let done = until(&message);
        heard.push(message);
        if done {
            return Ok(());
        }
    }
}

/// The script with a wait for every ReadyForQuery, as drivers that know no pipelines work; `None` where one would be in
/// vain: a Query in the middle of a pipeline may be skipped, a Sync inside a copy is.
#[must_use]
pub fn step_by_step(script: &str) -> Option<String> {
    let mut steps = String::new();
    let mut in_pipeline = false;
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "wait Z");
    for line in lines {
        let kind = line.split(' ').next().unwrap_or_default();
        let ends = matches!(kind, "Q" | "S");
        if (kind == "Q" && in_pipeline) || matches!(kind, "d" | "c" | "f") {
            return None;
        }
        in_pipeline = !ends;
        let _ = writeln!(steps, "{line}{}", if ends { "\nwait Z" } else { "" });
    }
    Some(steps)
}

/// The bytes of one line.
///
/// # Panics
/// When the line is no message.
#[must_use]
pub fn bytes(line: &str) -> BytesMut {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let parts: Vec<&str> = rest.split('|').map(str::trim).collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let mut out = Pipeline::new();
    match kind {
        "Q" => out.query(rest),
        "P" => out.parse(part(0), part(1)),
        "B" => {
            let values: Vec<Option<&str>> =
                parts.iter().skip(2).map(|value| (*value != "NULL").then_some(*value)).collect();
            out.bind(part(0), part(1), &values)
        }
        "DS" | "DP" => out.describe(kind.as_bytes()[1], part(0)),
        "E" => out.execute(part(0), part(1).parse().unwrap_or(0)),
        "CS" | "CP" => out.close(kind.as_bytes()[1], part(0)),
        "S" => out.sync(),
        "H" => {
            out.bytes.put_slice(b"H\0\0\0\x04");
            &mut out
        }
        "d" => {
            let line = rest.replace("\\t", "\t").replace("\\n", "\n");
            out.bytes.put_u8(b'd');
            out.bytes.put_i32(i32::try_from(4 + line.len()).expect("a short line"));
            out.bytes.put_slice(line.as_bytes());
            &mut out
        }
        "c" => {
            out.bytes.put_slice(b"c\0\0\0\x04");
            &mut out
        }
        "f" => out.copy_fail(rest),
        _ => panic!("no message: {line}"),
    };
    out.bytes
}

/// Messages as words: the type, and of some what matters in them. ParameterStatus is left out, its time is not fixed.
#[must_use]
pub fn words(messages: &[Message]) -> String {
    let mut words = String::new();
    for message in messages.iter().filter(|message| message.tag != b'S') {
        let text = || String::from_utf8_lossy(&message.body).trim_end_matches('\0').to_owned();
        let detail = match message.tag {
            b'C' => format!("({})", text()),
            b'Z' => text(),
            b'E' | b'N' => format!("({})", message.field(b'C').unwrap_or_default()),
            b'D' => {
                let columns = message.columns().into_iter().map(|column| column.unwrap_or_else(|| "NULL".to_owned()));
                format!("({})", columns.collect::<Vec<_>>().join(","))
            }
            b'd' => format!("({})", text().escape_debug()),
            _ => String::new(),
        };
        let _ = write!(words, "{}{}{detail}", if words.is_empty() { "" } else { " " }, char::from(message.tag));
    }
    words
}
