//! Reads the node trees that PostgreSQL prints: which functions and relations a statement resolves to, by their OIDs.
//!
//! The format is that of `nodes/outfuncs.c`: `{LABEL :field value … }`, lists in brackets, and a backslash before every
//! character of a name or text that would mean something else.

use std::collections::BTreeSet;

/// What the trees of a text refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refers {
    /// Functions called by name: `f(x)`, `x.f`, aggregates, window functions, SQL's own syntax for calls.
    pub calls: BTreeSet<u32>,
    /// Functions behind explicit and implicit casts.
    pub casts: BTreeSet<u32>,
    /// Operators.
    pub operators: BTreeSet<u32>,
    /// Types whose values are read from text or written to it.
    pub conversions: BTreeSet<u32>,
    /// Relations in FROM, or written.
    pub relations: BTreeSet<u32>,
    /// Those of them for which more than SELECT is needed: written or locked.
    pub written: BTreeSet<u32>,
}

impl Refers {
    /// Adds what another tree refers to.
    pub fn add(&mut self, other: &Refers) {
        self.calls.extend(&other.calls);
        self.casts.extend(&other.casts);
        self.operators.extend(&other.operators);
        self.conversions.extend(&other.conversions);
        self.relations.extend(&other.relations);
        self.written.extend(&other.written);
    }

    /// Reads one tree.
    pub fn read(&mut self, tree: &str) {
        let mut open: Vec<Node<'_>> = Vec::new();
        for token in Tokens(tree) {
            match (token, open.last_mut()) {
                ("{", _) => open.push(Node::default()),
                ("}", _) => {
                    if let Some(node) = open.pop() {
                        self.node(&node);
                    }
                }
                ("(" | ")" | "<>", _) | (_, None) => {}
                (label, Some(node)) if node.label.is_empty() => node.label = label,
                (token, Some(node)) => match token.strip_prefix(':') {
                    Some(field) => node.field = field,
                    None => node.value(token),
                },
            }
        }
    }

    fn node(&mut self, node: &Node<'_>) {
        const ACL_SELECT: u32 = 1 << 1;
        // Since 16 what is needed stands in nodes of its own.
        if matches!(node.label, "RTE" | "RANGETBLENTRY" | "RTEPERMISSIONINFO" | "RTEPERMINFO")
            && node.numbers.iter().any(|(field, needed)| *field == "requiredPerms" && needed & !ACL_SELECT != 0)
        {
            self.written.extend(node.numbers.iter().filter(|(field, _)| *field == "relid").map(|(_, relid)| relid));
        }
        let mut into = |set: fn(&mut Refers) -> &mut BTreeSet<u32>, fields: &[&str]| {
            set(self)
                .extend(node.numbers.iter().filter(|(field, _)| fields.contains(field)).map(|(_, number)| *number));
        };
        match node.label {
            // COERCE_EXPLICIT_CAST and COERCE_IMPLICIT_CAST
            "FUNCEXPR" if node.numbers.iter().any(|pair| matches!(pair, ("funcformat", 1 | 2))) => {
                into(|refers| &mut refers.casts, &["funcid"]);
            }
            "FUNCEXPR" => into(|refers| &mut refers.calls, &["funcid"]),
            "AGGREF" => into(|refers| &mut refers.calls, &["aggfnoid"]),
            "WINDOWFUNC" => into(|refers| &mut refers.calls, &["winfnoid"]),
            "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" | "SCALARARRAYOPEXPR" => {
                into(|refers| &mut refers.operators, &["opno"]);
            }
            "ROWCOMPARE" | "ROWCOMPAREEXPR" => into(|refers| &mut refers.operators, &["opnos"]),
            "SORTGROUPCLAUSE" => into(|refers| &mut refers.operators, &["eqop", "sortop"]),
            "COERCEVIAIO" => into(|refers| &mut refers.conversions, &["resulttype"]),
            "RTE" | "RANGETBLENTRY" => into(|refers| &mut refers.relations, &["relid"]),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Node<'a> {
    label: &'a str,
    field: &'a str,
    /// Fields that are numbers, or lists of numbers.
    numbers: Vec<(&'a str, u32)>,
}

impl<'a> Node<'a> {
    fn value(&mut self, token: &'a str) {
        if let Ok(number) = token.parse()
            && number != 0
        {
            self.numbers.push((self.field, number));
        }
    }
}

/// The tokens of a tree: brackets, and words between white space.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let bytes = text.as_bytes();
        let mut end = 0;
        while let Some(byte) = bytes.get(end) {
            match byte {
                b'\\' => end += 2,
                b'{' | b'}' | b'(' | b')' => break,
                byte if byte.is_ascii_whitespace() => break,
                _ => end += 1,
            }
        }
        let end = if end == 0 && !text.is_empty() { 1 } else { end.min(text.len()) };
        let (token, rest) = text.split_at_checked(end)?;
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }
}

/// What one text made the server print.
#[derive(Debug, Default)]
pub struct Printed {
    /// As the statement was written: views are still views.
    pub parsed: Refers,
    /// As it runs: rewritten, and planned.
    pub run: Refers,
    /// How many trees there were.
    pub trees: usize,
}

/// Reads a piece of the server's log.
pub fn printed(log: &str) -> Printed {
    let mut printed = Printed::default();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let parsed = line.ends_with("LOG:  parse tree:");
        if !parsed && !line.ends_with("LOG:  rewritten parse tree:") && !line.ends_with("LOG:  plan:") {
            continue;
        }
        let Some((_, first)) = lines.next().and_then(|line| line.split_once("DETAIL:  ")) else { continue };
        let mut tree = first.to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            tree.push(' ');
            tree.push_str(&more[1..]);
        }
        printed.trees += 1;
        let into = if parsed { &mut printed.parsed } else { &mut printed.run };
        into.read(&tree);
    }
    printed
}

#[test]
fn a_tree_tells_what_it_calls() {
    let tree = r"({QUERY :rtable ({RANGETBLENTRY :alias {ALIAS :aliasname a\ \{FUNCEXPR\ :funcid\ 9\}} :rtekind 0 :relid 16384})
        :targetList ({FUNCEXPR :funcid 871 :funcformat 0 :args ({FUNCEXPR :funcid 5 :funcformat 2 :args <>})}
        {RTE :rtekind 0 :relid 16385 :requiredPerms 6} {ROWCOMPARE :opnos (o 97 98)} {COERCEVIAIO :arg {OPEXPR :opno 96 :opfuncid 65} :resulttype 25})})";
    let mut refers = Refers::default();
    refers.read(tree);
    let set = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<u32>>();
    let expected = Refers {
        calls: set(&[871]),
        casts: set(&[5]),
        operators: set(&[96, 97, 98]),
        conversions: set(&[25]),
        relations: set(&[16384, 16385]),
        written: set(&[16385]),
    };
    assert_eq!(refers, expected);
}
