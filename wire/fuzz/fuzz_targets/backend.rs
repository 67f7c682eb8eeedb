//! What a server sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_wire::fuzz::fuzz_backend(data));
