//! See `mainstay_fuzz::request_stream`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::request_stream::run(data));
