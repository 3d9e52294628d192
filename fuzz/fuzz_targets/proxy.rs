//! See `mainstay_fuzz::proxy`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::proxy::run(data));
