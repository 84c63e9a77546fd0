#![no_main]
//! Any text is read or refused as manifests: `cargo +nightly fuzz run manifests`.

#[path = "../src/manifests.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
