//! `portcullis-proxy check`: what a policy says about SQL from standard input, and which GRANTs it compiles to. For people
//! who write policies, and for tests. It needs no configuration, key, catalog or server, and must stay so.

mod caret;
mod input;
mod report;

use std::fs::File;
use std::io::{self, BufRead, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use portcullis_policy::{DocumentErrors, Policy, RolePolicy, Rule, STACK_BYTES, Surface, Target, judge};

use input::Texts;
use report::Report;

/// The longest policy document that is read, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// The profiles that Portcullis ships, as they stand in `provisioner/profiles`.
const SHIPPED: [(&str, &str); 3] = [
    ("storage", include_str!("../../provisioner/profiles/storage/policy.toml")),
    ("override", include_str!("../../provisioner/profiles/override/policy.toml")),
    ("design", include_str!("../../provisioner/profiles/design/policy.toml")),
];

const AFTER_HELP: &str = "\
Examples:
  echo 'CREATE TABLE notes (id int)' | portcullis-proxy check --policy storage --role customer_db
  portcullis-proxy check --policy policy.toml --role app --each line --json < queries.sql
  portcullis-proxy check --policy override --role runtime --grants
  portcullis-proxy check --rules

Exit codes:
  0  every text may pass (or what was asked for was printed)
  1  some text is refused
  2  the arguments or the policy are wrong; every mistake of the policy is printed as file:line:column";

/// What to check.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// A policy document, or the name of a shipped profile: storage, override, design. (./storage is a file.)
    #[arg(long, value_name = "FILE|PROFILE", required_unless_present = "rules")]
    policy: Option<PathBuf>,

    /// The kind of login to judge for, such as customer_db.
    #[arg(long, value_name = "KIND")]
    role: Option<String>,

    /// Where the SQL would come from: a Query message, a Parse message, or the HTTP interfaces.
    #[arg(long, value_enum, default_value = "simple")]
    surface: SurfaceName,

    /// Judge many texts: one per line (blank lines are left out), or separated by zero bytes. Without it, all of standard
    /// input is one text.
    #[arg(long, value_enum, value_name = "SEPARATOR")]
    each: Option<Each>,

    /// Print one JSON object per text (per kind with --grants, per rule with --rules), one to a line.
    #[arg(long)]
    json: bool,

    /// A name of the workspace's database that may stand before schema.table. Can be given several times.
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,

    /// Print the GRANTs that the policy compiles to, for --role or for every kind, instead of judging.
    #[arg(long, conflicts_with_all = ["rules", "each", "database"])]
    grants: bool,

    /// To whom --grants grants; the role's name in the policy unless given.
    #[arg(long, value_name = "ROLE", requires = "grants")]
    grantee: Option<String>,

    /// Print all rules by which texts are refused, and what they mean.
    #[arg(long, conflicts_with_all = ["policy", "role", "each", "database"])]
    rules: bool,
}

/// [`Surface`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SurfaceName {
    Simple,
    Parse,
    Http,
}

impl From<SurfaceName> for Surface {
    fn from(name: SurfaceName) -> Self {
        match name {
            SurfaceName::Simple => Self::SimpleQuery,
            SurfaceName::Parse => Self::Parse,
            SurfaceName::Http => Self::Http,
        }
    }
}

/// What separates texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Each {
    Line,
    Nul,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every text may pass, or nothing was judged.
    Passed,
    /// Some text is refused.
    Refused,
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file cannot be read.
    #[error("cannot read the policy {} (the shipped ones are storage, override and design)", .file.display())]
    Policy {
        /// As it was given.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All mistakes of the document, each on its line as `file:line:column: what`.
    #[error("{}", mistakes(.file, .errors))]
    Document {
        /// As it was given.
        file: PathBuf,
        /// At least one.
        errors: DocumentErrors,
    },
    /// `--role` is missing or names no kind of the policy.
    #[error("--role is {}; the kinds of policy {policy} are {kinds}", .role.as_ref().map_or("missing".to_owned(), |role| format!("{role:?}")))]
    Role {
        /// As it was given.
        role: Option<String>,
        /// The policy's name.
        policy: String,
        /// Its kinds, separated by commas.
        kinds: String,
    },
    /// Standard input failed.
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    /// Standard output failed.
    #[error("cannot write the result")]
    Output(#[source] io::Error),
    /// There is no memory for a thread with the judge's stack, or it died.
    #[error("cannot start the judge")]
    Judge(#[source] io::Error),
}

fn mistakes(file: &Path, errors: &DocumentErrors) -> String {
    let line = |error: &portcullis_policy::DocumentError| {
        format!("{}:{}:{}: {}", file.display(), error.line, error.column, error.message)
    };
    errors.0.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Does what was asked for, on a thread with the stack that the judge needs.
///
/// # Errors
/// When the policy cannot be used, or input or output fails.
pub fn run(
    arguments: &Arguments,
    input: impl BufRead + Send,
    output: impl Write + Send,
) -> Result<Outcome, CheckError> {
    let answer = || answer(arguments, input, output);
    std::thread::scope(|scope| {
        let judge = std::thread::Builder::new().name("judge".to_owned()).stack_size(STACK_BYTES);
        let judge = judge.spawn_scoped(scope, answer).map_err(CheckError::Judge)?;
        judge.join().unwrap_or_else(|_| Err(CheckError::Judge(io::Error::other("the judge panicked"))))
    })
}

fn answer(arguments: &Arguments, input: impl BufRead, mut output: impl Write) -> Result<Outcome, CheckError> {
    let Some(file) = arguments.policy.as_deref().filter(|_| !arguments.rules) else {
        report::rules(Rule::ALL, arguments.json, &mut output).map_err(CheckError::Output)?;
        return printed(output);
    };
    let policy = load(file)?;
    if arguments.grants {
        let roles = match &arguments.role {
            Some(_) => vec![role(&policy, arguments)?],
            None => policy.kinds().iter().map(AsRef::as_ref).collect(),
        };
        for role in roles {
            let grantee = arguments.grantee.as_deref().unwrap_or(role.contract_role());
            report::grants(role, grantee, arguments.json, &mut output).map_err(CheckError::Output)?;
        }
        return printed(output);
    }
    judge_all(arguments, role(&policy, arguments)?, input, output)
}

/// Nothing was judged, and all of it has gone out.
fn printed(mut output: impl Write) -> Result<Outcome, CheckError> {
    output.flush().map_err(CheckError::Output)?;
    Ok(Outcome::Passed)
}

fn judge_all(
    arguments: &Arguments,
    role: &RolePolicy,
    input: impl BufRead,
    output: impl Write,
) -> Result<Outcome, CheckError> {
    let names: Vec<&str> = arguments.database.iter().map(String::as_str).collect();
    let target = Target { database_names: &names };
    let mut texts = Texts::new(input, arguments.each);
    let mut report = Report::new(output, arguments.json, arguments.each.is_some());
    while let Some((number, text)) = texts.next().map_err(CheckError::Input)? {
        let verdict = judge(role, arguments.surface.into(), text, &target);
        report.text(number, text, &verdict).map_err(CheckError::Output)?;
    }
    report.finish().map_err(CheckError::Output)
}

fn load(file: &Path) -> Result<Policy, CheckError> {
    let shipped = SHIPPED.iter().find(|(name, _)| file.as_os_str() == *name);
    let document = match shipped {
        Some((_, document)) => (*document).to_owned(),
        None => read(file).map_err(|source| CheckError::Policy { file: file.to_owned(), source })?,
    };
    Policy::parse(&document).map_err(|errors| CheckError::Document { file: file.to_owned(), errors })
}

fn read(file: &Path) -> io::Result<String> {
    let mut document = String::new();
    let read = File::open(file)?.take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut document)?;
    if read as u64 > DOCUMENT_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {DOCUMENT_BYTES_MAX} bytes")));
    }
    Ok(document)
}

fn role<'p>(policy: &'p Policy, arguments: &Arguments) -> Result<&'p RolePolicy, CheckError> {
    let found = arguments.role.as_deref().and_then(|kind| policy.kind(kind));
    found.map(AsRef::as_ref).ok_or_else(|| {
        let kinds: Vec<&str> = policy.kinds().iter().map(|role| role.kind()).collect();
        CheckError::Role { role: arguments.role.clone(), policy: policy.name().to_owned(), kinds: kinds.join(", ") }
    })
}
