//! See `mainstay_fuzz::config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::config::run(data));
