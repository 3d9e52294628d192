//! See `mainstay_fuzz::wire`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::wire::run(data));
