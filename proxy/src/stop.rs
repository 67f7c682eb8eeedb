//! Signals and the end of the process.
