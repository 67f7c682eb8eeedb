//! What a statement is and whether it may pass. No I/O, no clock, no async runtime.
//!
//! SQL enters by [`judge`]: a text and a role's policy in, a [`Verdict`] out. [`VerdictCache`] stands before it and gives the
//! verdicts that it has given. Only a [`Permit`] opens the way to an upstream. The same document compiles into GRANTs ([`grants`]), so that each wall holds when the other falls.
//!
//! How a text is judged: bounds and one pass of our own scanner (`scan`) → PostgreSQL's own grammar (`pg_query`) → an
//! exhaustive walk that collects facts (`classify`) → the role's rules over these facts (`judge`).
//! What is not understood is refused.

mod cache;
mod classify;
mod document;
pub mod functions;
pub mod fuzz;
pub mod grants;
mod judge;
mod plain;
mod rule;
mod scan;
mod settings;
mod shape;
mod verdict;

pub use cache::{CacheSize, Found, Scope, VerdictCache};
pub use document::{DocumentError, DocumentErrors, Policy, Pooling, RolePolicy};
pub use judge::{Effort, Outline, STACK_BYTES, effort, judge};
pub use rule::Rule;
pub use settings::judge_setting;
pub use verdict::{Denial, Effect, Kind, Permit, PinReason, Surface, TaintReason, Target, Verdict};

/// Names of statements and cursors that start with this belong to the proxy; clients may not use them.
pub const RESERVED_PREFIX: &str = "_portcullis_";

/// The longest text that is judged, in bytes. Longer ones are refused with 54000.
pub const SQL_BYTES_MAX: usize = 1 << 20;
