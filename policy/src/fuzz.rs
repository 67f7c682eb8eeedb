//! The judge behind one function of plain bytes, so that the fuzzer and the ordinary tests call the same code.
//!
//! It panics when something that must hold for every text does not: that is what a fuzzer looks for. It is no part of the
//! gate.

mod mutate;

use std::sync::Arc;

use crate::{
    Denial, Effect, Effort, Kind, Outline, Permit, Policy, RolePolicy, Rule, SQL_BYTES_MAX, Scope, Surface, Target,
    Verdict, VerdictCache, effort, judge, judge_setting,
};

pub use mutate::Mutator;

/// Everything that a policy can give, so that more of the judge is reached than the shipped profiles let through.
const PERMISSIVE: &str = r#"
name = "permissive"
managed_schemas = ["dl_cache", "dl_override", "dl_resolved", "dl_meta"]
customer_schemas = ["storage", "tenant_custom", "public"]

[[kind]]
kind = "all"
role = "all"
primary = true
batches = "each"
read = ["dl_cache", "dl_override", "dl_resolved", "dl_meta", "storage", "tenant_custom", "public"]
write = ["dl_override", "storage", "tenant_custom", "public"]
truncate = ["dl_override", "storage", "tenant_custom", "public"]
define = ["storage", "tenant_custom", "public"]
define_objects = ["table", "index", "sequence", "view", "materialized_view", "type", "domain", "statistics"]
copy = true
unqualified_target = "public"
listen = true
advisory_locks = true
temporary_tables = true
functions = ["public.f", "storage.f"]

[kind.settings]
search_path = ["public"]
"#;

const SURFACES: [Surface; 3] = [Surface::SimpleQuery, Surface::Parse, Surface::Http];

/// The names that the session's own database has here, as in the corpora.
const DATABASE_NAMES: [&str; 2] = ["own_database", "ws_0123456789abcdef"];

/// The memory of each cache, in bytes: small, so that entries are pushed out as well.
const CACHE_BYTES: usize = 1 << 20;

/// What may stand before or behind a text without changing what it is.
const BEFORE: &str = "\n/* x; */ ";
const AFTER: &str = "\n \t";
/// No policy allows it.
const NEVER: &str = "ALTER SYSTEM SET work_mem = 1";

/// Kinds of login, each with a cache that lives through many texts.
pub struct Fuzz {
    roles: Vec<Role>,
}

struct Role {
    policy: Arc<RolePolicy>,
    cache: VerdictCache,
    scope: Scope,
}

impl Fuzz {
    /// Judges for every kind of these documents, and for one that may do whatever a policy can allow.
    ///
    /// # Errors
    /// The mistakes of the first document that has some.
    pub fn new(documents: &[&str]) -> Result<Self, crate::DocumentErrors> {
        let names = DATABASE_NAMES.map(str::to_owned);
        let mut roles = Vec::new();
        for document in documents.iter().copied().chain([PERMISSIVE]) {
            for policy in Policy::parse(document)?.kinds() {
                let cache = VerdictCache::new(CACHE_BYTES);
                let scope = cache.scope(policy, &names);
                roles.push(Role { policy: policy.clone(), cache, scope });
            }
        }
        Ok(Self { roles })
    }

    /// Judges any bytes: short texts for every kind and surface, long ones for one of each.
    ///
    /// Needs the stack that the text's [`effort`] says.
    ///
    /// # Panics
    /// When something that must always hold does not.
    pub fn judge(&self, text: &[u8]) {
        if effort(text) != Effort::Small || text.len() > SQL_BYTES_MAX {
            let pick = text.iter().fold(text.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
            let role = &self.roles[pick % self.roles.len()];
            check_verdict(text, &role.judge(SURFACES[pick / 7 % 3], text));
            return;
        }
        for role in &self.roles {
            let [simple, parse, http] = SURFACES.map(|surface| role.everywhere(surface, text));
            surfaces_agree(&simple, &parse);
            surfaces_agree(&parse, &http);
            role.company(text, &simple);
            role.other_numbers(text);
            role.setting(text);
        }
    }
}

impl std::fmt::Debug for Fuzz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fuzz").field("roles", &self.roles.len()).finish()
    }
}

impl Role {
    fn judge(&self, surface: Surface, text: &[u8]) -> Verdict {
        judge(&self.policy, surface, text, &Target { database_names: &DATABASE_NAMES })
    }

    /// The verdict, which is complete, and which the cache gives too, whether it knows the text or its shape or neither.
    fn everywhere(&self, surface: Surface, text: &[u8]) -> Verdict {
        let verdict = self.judge(surface, text);
        check_verdict(text, &verdict);
        assert!(same(&verdict, &self.cache.judge(&self.scope, surface, text).0), "another verdict from the cache");
        if let Some(recalled) = self.cache.recall(&self.scope, surface, text) {
            assert!(same(&verdict, &recalled), "another verdict from memory");
        }
        verdict
    }

    /// What stands before or behind a text does not change what it is.
    fn company(&self, text: &[u8], alone: &Verdict) {
        let with = |before: &str, after: &str| {
            let text = [before.as_bytes(), text, after.as_bytes()].concat();
            // A text at the very bound on small ones becomes a big one, for which there is no stack here.
            (effort(&text) == Effort::Small).then(|| self.judge(Surface::SimpleQuery, &text))
        };
        for (before, after) in [(BEFORE, ""), ("", AFTER)] {
            if let Some(padded) = with(before, after)
                && !word_for_word(text)
            {
                padding_is_nothing(alone, &padded, before.chars().count());
            }
        }
        let (first, last) = (format!("{NEVER};\n"), format!("\n;{NEVER}"));
        for (before, after) in [(first.as_str(), ""), ("", last.as_str())] {
            assert!(!matches!(with(before, after), Some(Verdict::Allow(_))), "{NEVER} passes in company");
        }
        if matches!(alone, Verdict::Deny(_)) {
            assert!(!matches!(with("BEGIN; ", ""), Some(Verdict::Allow(_))), "what is refused passes after BEGIN");
        }
    }

    /// The same text with other numbers, of which the cache knows the shape by now.
    fn other_numbers(&self, text: &[u8]) {
        let other = |byte: &u8| if byte.is_ascii_digit() { b'1' + (byte - b'0' + 6) % 9 } else { *byte };
        let text: Vec<u8> = text.iter().map(other).collect();
        if effort(&text) == Effort::Small {
            let cached = self.cache.judge(&self.scope, Surface::SimpleQuery, &text).0;
            assert!(same(&self.judge(Surface::SimpleQuery, &text), &cached), "another verdict for the shape");
        }
    }

    fn setting(&self, text: &[u8]) {
        let Ok(text) = std::str::from_utf8(text) else { return };
        let (name, value) = text.split_once('=').unwrap_or(("search_path", text));
        if let Err(denial) = judge_setting(&self.policy, name, value) {
            assert_eq!(denial.sqlstate.len(), 5);
        }
    }
}

fn check_verdict(text: &[u8], verdict: &Verdict) {
    match verdict {
        Verdict::Allow(permit) => check_permit(text, permit),
        Verdict::Deny(denial) => check_denial(text, denial),
    }
}

fn check_permit(text: &[u8], permit: &Permit) {
    assert_eq!(permit.text().as_bytes(), text, "another text than the one that was judged");
    let each: Vec<Effect> = (0..permit.statements()).flat_map(|at| permit.effects_of(at)).cloned().collect();
    assert_eq!(each, permit.effects(), "effects that belong to no statement");
    assert_eq!(permit.statements() == 0, permit.command() == Kind::Empty);
    assert!(!matches!(permit.command(), Kind::Other(_)), "a kind that no policy can allow");
    for names in [permit.reads(), permit.writes(), permit.functions()] {
        assert!(names.is_sorted() && !names.iter().any(String::is_empty), "{names:?}");
    }
    let Some(outline) = Outline::of_text(text) else { panic!("a permit without an outline") };
    assert_eq!((outline.kind, outline.statements), (permit.command(), permit.statements()));
    assert_eq!((&outline.reads[..], &outline.writes[..]), (permit.reads(), permit.writes()));
    assert_eq!(outline.functions, permit.functions());
}

fn check_denial(text: &[u8], denial: &Denial) {
    let code = denial.sqlstate.as_bytes();
    assert!(code.len() == 5 && code.iter().all(u8::is_ascii_alphanumeric), "{denial:?}");
    assert!(!denial.message.is_empty() && denial.detail.contains(denial.rule.id()), "{denial:?}");
    assert!(denial.rule == Rule::SyntaxError || !denial.hint.is_empty(), "no remedy: {denial:?}");
    for shown in [&denial.message, &denial.detail, &denial.hint] {
        assert!(!shown.contains('\0'), "a zero byte in a message: {denial:?}");
    }
    let characters = String::from_utf8_lossy(text).chars().count();
    assert!(denial.position.is_none_or(|at| (1..=characters + 1).contains(&(at as usize))), "{denial:?}");
}

/// The refusals that a longer text can meet first.
fn is_limit(denial: &Denial) -> bool {
    matches!(denial.rule, Rule::TextTooLong | Rule::TextTooDeep | Rule::TextTooLarge | Rule::TextCommentDepth)
}

/// What pg_dump sends passes only exactly as pg_dump sends it.
fn word_for_word(text: &[u8]) -> bool {
    const OF_PG_DUMP: &[u8] = b"'restrict_nonsystem_relation_kind'";
    text.windows(OF_PG_DUMP.len()).any(|part| part == OF_PG_DUMP)
}

fn padding_is_nothing(alone: &Verdict, padded: &Verdict, moved: usize) {
    match (alone, padded) {
        (Verdict::Allow(alone), Verdict::Allow(padded)) => {
            assert!(facts(alone) == facts(padded), "padding changes facts")
        }
        (_, Verdict::Deny(padded)) if is_limit(padded) => {}
        // The parser's own words quote the rest of the text and point at its end.
        (Verdict::Deny(alone), Verdict::Deny(padded)) if alone.rule == Rule::SyntaxError => {
            assert_eq!(padded.rule, Rule::SyntaxError, "padding makes sense of nonsense");
        }
        (Verdict::Deny(alone), Verdict::Deny(padded)) => {
            assert_eq!((alone.rule, &alone.message), (padded.rule, &padded.message), "padding changes the refusal");
            let position = alone.position.map(|at| at as usize + moved);
            assert_eq!(position, padded.position.map(|at| at as usize), "padding loses the place: {alone:?}");
        }
        _ => panic!("padding changes the verdict: {alone:?}, {padded:?}"),
    }
}

/// What the stricter surface lets pass, the wider one lets pass too, and both see the same.
fn surfaces_agree(wide: &Verdict, strict: &Verdict) {
    match (wide, strict) {
        (Verdict::Allow(wide), Verdict::Allow(strict)) => {
            assert!(facts(wide) == facts(strict), "a surface changes facts")
        }
        (Verdict::Deny(wide), Verdict::Allow(_)) => panic!("only the stricter surface lets it pass: {wide:?}"),
        (_, Verdict::Deny(_)) => {}
    }
}

fn facts(permit: &Permit) -> impl PartialEq {
    let lists = [permit.reads(), permit.writes(), permit.functions()].map(<[String]>::to_vec);
    (permit.command(), permit.statements(), permit.effects().to_vec(), lists)
}

fn same(one: &Verdict, other: &Verdict) -> bool {
    match (one, other) {
        (Verdict::Allow(one), Verdict::Allow(other)) => one.text() == other.text() && facts(one) == facts(other),
        (Verdict::Deny(one), Verdict::Deny(other)) => one == other,
        _ => false,
    }
}
