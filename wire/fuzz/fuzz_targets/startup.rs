//! Startup packets and the parameter `options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_wire::fuzz::fuzz_startup(data));
