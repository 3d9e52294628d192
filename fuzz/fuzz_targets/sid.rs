//! See `mainstay_fuzz::sid`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::sid::run(data));
