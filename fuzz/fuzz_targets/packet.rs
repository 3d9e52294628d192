//! See `mainstay_fuzz::packet`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::packet::run(data));
