//! See `mainstay_fuzz::tracker`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mainstay_fuzz::tracker::pipe(data));
