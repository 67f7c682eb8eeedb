//! What a statement is and whether it may pass. No I/O.

pub mod functions;
