//! A remembered verdict costs no memory: nothing is allocated to find it.
#![allow(clippy::unwrap_used)]

use std::alloc::System;

use portcullis_policy::{Policy, Surface, Verdict, VerdictCache};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test alone in its process: others would be counted too.
#[test]
fn a_hit_allocates_nothing() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../provisioner/profiles/storage/policy.toml");
    let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cache = VerdictCache::new(1 << 20);
    let scope = cache.scope(policy.primary().unwrap(), &["ws_1".to_owned()]);
    let texts = ["SELECT abalance FROM storage.pgbench_accounts WHERE aid = $1", "DELETE FROM notes"];
    for text in texts {
        cache.judge(&scope, Surface::Parse, text.as_bytes());
    }
    let region = Region::new(COUNTED);
    let verdicts = texts.map(|text| cache.recall(&scope, Surface::Parse, text.as_bytes()));
    let counted = region.change();
    assert!(matches!(verdicts, [Some(Verdict::Allow(_)), Some(Verdict::Deny(_))]));
    assert_eq!((counted.allocations, counted.reallocations), (0, 0));
}
