//! What a program of the matrix says, and whether that is enough: every check of tests/drivers/checks.toml once.

use std::{collections::BTreeMap, fs};

use portcullis_tests::programs;
use serde::Deserialize;
use serde_json::json;

/// The list: texts that all programs use, and the checks with what they mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub texts: BTreeMap<String, String>,
    pub checks: BTreeMap<String, String>,
}

impl List {
    pub fn read() -> List {
        let path = programs::root().join("tests/drivers/checks.toml");
        let text = fs::read_to_string(path).expect("the list of checks reads");
        toml::from_str(&text).expect("the list of checks is TOML")
    }
}

/// A line of a program.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub enum Line {
    Driver(Driver),
    Check(Check),
    Ask(Ask),
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    pub driver: String,
    pub version: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub check: String,
    pub result: Outcome,
    #[serde(default)]
    pub why: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    pub ask: Wish,
}

#[derive(Deserialize, Debug, PartialEq, Eq)]
pub enum Outcome {
    #[serde(rename = "ok")]
    Ok,
    #[serde(rename = "not applicable")]
    NotApplicable,
    #[serde(rename = "failed")]
    Failed,
}

/// What a program cannot do by itself.
#[derive(Deserialize, Debug)]
pub enum Wish {
    #[serde(rename = "rotate")]
    Rotate,
}

/// Where tests/run finds what each program said, to print it at the end.
fn kept() -> std::path::PathBuf {
    programs::drivers().join("matrix")
}

/// What a program said so far.
#[derive(Default)]
pub struct Report {
    driver: Option<Driver>,
    checks: Vec<Check>,
    /// What was neither a check nor a wish: for whoever reads a failure.
    pub noise: String,
}

impl Report {
    /// Takes a line of standard output; a wish is for the caller.
    pub fn line(&mut self, line: &str) -> Option<Wish> {
        if !line.starts_with('{') {
            self.noise.push_str(line);
            self.noise.push('\n');
            return None;
        }
        match serde_json::from_str(line).unwrap_or_else(|error| panic!("a line that is none ({error}): {line}")) {
            Line::Driver(driver) => self.driver = Some(driver),
            Line::Check(check) => self.checks.push(check),
            Line::Ask(Ask { ask }) => return Some(ask),
        }
        None
    }

    /// Keeps what was said for tests/run, and fails unless it is every check of the list, once, and none failed.
    pub fn settle(self, name: &str, list: &List) {
        let driver = self.driver.as_ref().unwrap_or_else(|| panic!("{name} did not begin:\n{}", self.noise));
        let told = |outcome: &Outcome| self.checks.iter().filter(|check| check.result == *outcome).collect::<Vec<_>>();
        let reasons: BTreeMap<_, _> =
            told(&Outcome::NotApplicable).iter().map(|check| (check.check.clone(), check.why.clone())).collect();
        let kept_line = json!({
            "program": name, "driver": driver.driver, "version": driver.version, "ok": told(&Outcome::Ok).len(),
            "failed": told(&Outcome::Failed).len(), "not applicable": reasons,
        });
        fs::create_dir_all(kept()).expect("target/test-env is writable");
        fs::write(kept().join(format!("{name}.json")), format!("{kept_line}\n")).expect("target/test-env is writable");
        let wrong = self.wrong(list);
        assert!(wrong.is_empty(), "{name}:\n{}\n{}", wrong.join("\n"), self.noise);
    }

    fn wrong(&self, list: &List) -> Vec<String> {
        let mut wrong: Vec<String> = Vec::new();
        for name in list.checks.keys() {
            match self.checks.iter().filter(|check| check.check == *name).count() {
                1 => {}
                0 => wrong.push(format!("{name}: missing")),
                _ => wrong.push(format!("{name}: more than once")),
            }
        }
        for Check { check, result, why } in &self.checks {
            if !list.checks.contains_key(check) {
                wrong.push(format!("{check}: is no check of the list"));
            }
            match result {
                Outcome::Failed => wrong.push(format!("{check}: failed: {why}")),
                Outcome::NotApplicable if why.len() < 10 => wrong.push(format!("{check}: not applicable, but why?")),
                _ => {}
            }
        }
        wrong
    }
}

#[test]
fn a_report_is_every_check_once_and_none_failed() {
    let list =
        List { texts: BTreeMap::new(), checks: [("a", ""), ("b", "")].map(|(k, v)| (k.into(), v.into())).into() };
    let a_ok = r#"{"check": "a", "result": "ok"}"#;
    for (lines, wanted) in [
        (vec![a_ok, r#"{"check": "b", "result": "not applicable", "why": "it has no such thing"}"#], ""),
        (vec![a_ok], "b: missing"),
        (vec![a_ok, a_ok, r#"{"check": "b", "result": "ok"}"#], "a: more than once"),
        (vec![a_ok, r#"{"check": "b", "result": "not applicable"}"#], "b: not applicable, but why?"),
        (vec![a_ok, r#"{"check": "b", "result": "failed", "why": "boom"}"#], "b: failed: boom"),
        (
            vec![a_ok, r#"{"check": "b", "result": "ok"}"#, r#"{"check": "c", "result": "ok"}"#],
            "c: is no check of the list",
        ),
    ] {
        let mut report = Report::default();
        assert!(lines.iter().all(|line| report.line(line).is_none()));
        assert_eq!(report.wrong(&list).join("|"), wanted);
    }
    assert!(matches!(Report::default().line(r#"{"ask": "rotate"}"#), Some(Wish::Rotate)));
}
