//! See `mainstay_fuzz::cookie`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::cookie::run(data));
