//! Rules and requests of any kind: the index finds what a walk finds.

#![no_main]

#[path = "../src/matcher.rs"]
mod matcher;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    matcher::run(data);
});
