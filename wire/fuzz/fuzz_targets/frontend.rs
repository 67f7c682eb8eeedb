//! What a client sends after the login began.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_wire::fuzz::fuzz_frontend(data));
