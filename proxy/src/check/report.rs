//! What `check` prints: for people as psql would show a refusal, for programs as JSON.

use std::io::{self, Write};

use portcullis_policy::{Denial, Outline, RolePolicy, Rule, Verdict, grants::grants as compiled};
use serde::Serialize;

use super::{Outcome, caret};

pub(super) struct Report<W> {
    output: W,
    json: bool,
    /// Several texts may come: each is announced by its number, and they are counted in the end.
    several: bool,
    allowed: u64,
    refused: u64,
}

/// One text, for programs.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    verdict: &'static str,
    kind: Option<&'static str>,
    statements: Option<usize>,
    reads: &'a [String],
    writes: &'a [String],
    functions: &'a [String],
    rule: Option<&'static str>,
    sqlstate: Option<&'static str>,
    message: Option<&'a str>,
    object: Option<&'a str>,
    detail: Option<&'a str>,
    hint: Option<&'a str>,
    position: Option<u32>,
}

impl<W: Write> Report<W> {
    pub(super) fn new(output: W, json: bool, several: bool) -> Self {
        Self { output, json, several, allowed: 0, refused: 0 }
    }

    pub(super) fn text(&mut self, number: u64, text: &[u8], verdict: &Verdict) -> io::Result<()> {
        let denial = match verdict {
            Verdict::Allow(_) => None,
            Verdict::Deny(denial) => Some(&**denial),
        };
        let first = self.allowed + self.refused == 0;
        *(if denial.is_none() { &mut self.allowed } else { &mut self.refused }) += 1;
        let outline = Outline::of_text(text);
        if self.json {
            return self.row(number, outline.as_ref(), denial);
        }
        if self.several {
            let line = if first { "" } else { "\n" };
            writeln!(self.output, "{line}-- {number}")?;
        }
        if let Some(denial) = denial {
            self.as_psql(&String::from_utf8_lossy(text), denial)?;
        }
        self.summary(outline.as_ref(), denial)
    }

    pub(super) fn finish(mut self) -> io::Result<Outcome> {
        if self.several && !self.json {
            writeln!(self.output, "\n{} allowed, {} refused", self.allowed, self.refused)?;
        }
        self.output.flush()?;
        Ok(if self.refused == 0 { Outcome::Passed } else { Outcome::Refused })
    }

    fn row(&mut self, number: u64, outline: Option<&Outline>, denial: Option<&Denial>) -> io::Result<()> {
        let row = Row {
            number: self.several.then_some(number),
            verdict: if denial.is_none() { "allow" } else { "deny" },
            kind: outline.map(|outline| outline.kind.name()),
            statements: outline.map(|outline| outline.statements),
            reads: outline.map_or(&[], |outline| &outline.reads),
            writes: outline.map_or(&[], |outline| &outline.writes),
            functions: outline.map_or(&[], |outline| &outline.functions),
            rule: denial.map(|denial| denial.rule.id()),
            sqlstate: denial.map(|denial| denial.sqlstate),
            message: denial.map(|denial| denial.message.as_str()),
            object: denial.and_then(|denial| denial.object.as_deref()),
            detail: denial.map(|denial| denial.detail.as_str()),
            hint: denial.map(|denial| denial.hint.as_str()),
            position: denial.and_then(|denial| denial.position),
        };
        json_line(&mut self.output, &row)
    }

    /// ERROR, LINE with its caret, DETAIL and HINT.
    fn as_psql(&mut self, text: &str, denial: &Denial) -> io::Result<()> {
        writeln!(self.output, "ERROR:  {}", printable(&denial.message))?;
        if let Some(lines) = denial.position.and_then(|position| caret::lines(text, position)) {
            for line in lines {
                writeln!(self.output, "{line}")?;
            }
        }
        writeln!(self.output, "DETAIL:  {}", printable(&denial.detail))?;
        if !denial.hint.is_empty() {
            writeln!(self.output, "HINT:  {}", printable(&denial.hint))?;
        }
        writeln!(self.output)
    }

    fn summary(&mut self, outline: Option<&Outline>, denial: Option<&Denial>) -> io::Result<()> {
        let kind = outline.map_or("", |outline| outline.kind.name());
        self.entry(if denial.is_none() { "allowed" } else { "refused" }, kind)?;
        if let Some(denial) = denial {
            self.entry("rule", denial.rule.id())?;
            self.entry("object", denial.object.as_deref().unwrap_or(""))?;
            self.entry("sqlstate", denial.sqlstate)?;
        }
        if let Some(outline) = outline {
            self.entry("reads", &outline.reads.join(", "))?;
            self.entry("writes", &outline.writes.join(", "))?;
            self.entry("functions", &outline.functions.join(", "))?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, value: &str) -> io::Result<()> {
        match (name, value) {
            ("allowed" | "refused", "") => writeln!(self.output, "{name}"),
            (_, "") => Ok(()),
            _ => writeln!(self.output, "{name:<10} {}", printable(value)),
        }
    }
}

/// A kind's GRANTs, as SQL with a comment in front, or as an object.
pub(super) fn grants(role: &RolePolicy, grantee: &str, json: bool, mut output: impl Write) -> io::Result<()> {
    let sql = compiled(role, grantee);
    if json {
        return json_line(output, &serde_json::json!({ "kind": role.kind(), "grantee": grantee, "grants": sql }));
    }
    writeln!(output, "-- {}, kind {}", role.profile(), role.kind())?;
    sql.iter().try_for_each(|statement| writeln!(output, "{statement};"))
}

/// All rules with their meanings.
pub(super) fn rules(rules: &[Rule], json: bool, mut output: impl Write) -> io::Result<()> {
    for rule in rules {
        if json {
            json_line(&mut output, &serde_json::json!({ "rule": rule.id(), "about": rule.about() }))?;
        } else {
            writeln!(output, "{rule:<24} {}", rule.about())?;
        }
    }
    Ok(())
}

fn json_line(mut output: impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut output, value)?;
    output.write_all(b"\n")
}

/// Without what would move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
