//! See `mainstay_fuzz::reader`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::reader::run(data));
