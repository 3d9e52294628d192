//! See `mainstay_fuzz::upgrade`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::upgrade::run(data));
