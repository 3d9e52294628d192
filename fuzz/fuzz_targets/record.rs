//! See `mainstay_fuzz::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::record::run(data));
