//! The messages of a SCRAM exchange, both sides.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_wire::fuzz::fuzz_scram(data));
