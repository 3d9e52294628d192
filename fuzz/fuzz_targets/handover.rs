//! See `mainstay_fuzz::tunnel`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::tunnel::handover(data));
