//! See `mainstay_fuzz::framing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::framing::run(data));
