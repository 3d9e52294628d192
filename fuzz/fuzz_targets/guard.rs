//! See `mainstay_fuzz::guard`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::guard::run(data));
