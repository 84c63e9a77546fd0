#![no_main]
//! What is said of rules by their regular expressions is so: `cargo +nightly fuzz run expressions`.

#[path = "../src/expressions.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
