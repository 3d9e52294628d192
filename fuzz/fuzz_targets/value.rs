//! See `mainstay_fuzz::value`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::value::run(data));
