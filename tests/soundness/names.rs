//! What the OIDs of one database stand for, and whether a text may have referred to them.

use std::collections::{HashMap, HashSet};

use portcullis_policy::functions::{self, Class};

use crate::{
    session::Session,
    trees::{Printed, Refers},
};

#[derive(Clone, Debug)]
struct Function {
    schema: String,
    name: String,
    volatile: bool,
}

#[derive(Clone, Debug)]
struct Relation {
    schema: String,
    name: String,
}

/// The names of a database as it is before a text runs.
#[derive(Debug, Default)]
pub struct Names {
    functions: HashMap<u32, Function>,
    /// The functions behind operators and behind types' input and output.
    operators: HashMap<u32, u32>,
    types: HashMap<u32, [u32; 2]>,
    /// Functions by which values of some type come and go: `('x'::cstring).textin` is a cast in disguise.
    of_types: HashSet<u32>,
    relations: HashMap<u32, Relation>,
    /// What views refer to.
    views: HashMap<u32, Refers>,
}

fn number(value: &Option<String>) -> u32 {
    value.as_deref().and_then(|value| value.parse().ok()).expect("an OID")
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

impl Names {
    /// Asks a superuser's session.
    pub async fn load(session: &mut Session) -> Names {
        let mut names = Names::default();
        let functions = "SELECT oid, pronamespace::regnamespace, proname, provolatile = 'v' FROM pg_proc";
        for row in session.own(functions).await {
            let function =
                Function { schema: text(&row[1]), name: text(&row[2]), volatile: row[3].as_deref() == Some("t") };
            names.functions.insert(number(&row[0]), function);
        }
        for row in session.own("SELECT oid, oprcode::oid FROM pg_operator").await {
            names.operators.insert(number(&row[0]), number(&row[1]));
        }
        for row in session.own("SELECT oid, typinput::oid, typoutput::oid FROM pg_type").await {
            names.types.insert(number(&row[0]), [number(&row[1]), number(&row[2])]);
        }
        let of_types =
            "SELECT DISTINCT f FROM pg_type, unnest(ARRAY[typinput, typoutput, typsend, typmodout]::oid[]) f";
        names.of_types = session.own(of_types).await.iter().map(|row| number(&row[0])).collect();
        for row in session.own("SELECT oid, relnamespace::regnamespace, relname FROM pg_class").await {
            names.relations.insert(number(&row[0]), Relation { schema: text(&row[1]), name: text(&row[2]) });
        }
        for row in session.own("SELECT ev_class, ev_action FROM pg_rewrite").await {
            names.views.entry(number(&row[0])).or_default().read(&text(&row[1]));
        }
        names
    }

    /// What is wrong with what a text referred to, in words.
    pub fn forbidden(&self, printed: &Printed, reads: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for relation in &printed.parsed.relations {
            let Some(Relation { schema, name }) = self.relations.get(relation) else { continue };
            let catalog =
                schema == "pg_catalog" && functions::revoked_relations().binary_search(&name.as_str()).is_err();
            if !catalog && schema != "information_schema" && !reads(schema) {
                wrong.push(format!("reads {schema}.{name}"));
            }
        }
        let behind_views = self.behind(&printed.parsed.relations);
        for refers in [&printed.parsed, &printed.run] {
            for call in refers.calls.difference(&behind_views.calls) {
                let Some(function) = self.functions.get(call) else { continue };
                let class = functions::lookup_in(&function.schema, &function.name);
                let of_a_type = self.of_types.contains(call) && !function.volatile;
                if !of_a_type && !matches!(class, Class::Allowed | Class::Special(_)) {
                    wrong.push(format!("calls {}.{}", function.schema, function.name));
                }
            }
            for (how, oid) in self.silent(refers) {
                let Some(function) = self.functions.get(&oid) else { continue };
                if function.schema != "pg_catalog" || function.volatile {
                    wrong.push(format!("calls {}.{} by {how}", function.schema, function.name));
                }
            }
        }
        wrong.sort();
        wrong.dedup();
        wrong
    }

    /// The functions that PostgreSQL itself puts for casts, operators and conversions.
    fn silent(&self, refers: &Refers) -> Vec<(&'static str, u32)> {
        let casts = refers.casts.iter().map(|oid| ("a cast", *oid));
        let operators = refers.operators.iter().filter_map(|oid| Some(("an operator", *self.operators.get(oid)?)));
        let types = refers.conversions.iter().filter_map(|oid| self.types.get(oid)).flatten();
        casts.chain(operators).chain(types.map(|oid| ("a conversion", *oid))).collect()
    }

    /// All that views among these relations refer to, views behind them included.
    fn behind(&self, relations: &std::collections::BTreeSet<u32>) -> Refers {
        let (mut all, mut seen) = (Refers::default(), HashSet::new());
        let mut left: Vec<u32> = relations.iter().copied().collect();
        while let Some(relation) = left.pop() {
            if let Some(refers) = self.views.get(&relation)
                && seen.insert(relation)
            {
                all.add(refers);
                left.extend(&refers.relations);
            }
        }
        all
    }
}
