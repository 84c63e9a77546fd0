//! What an idle process has in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use switchyard_tests::binary;
use switchyard_tests::process::{Switchyard, example};

/// What `switchyard run` with the canary example may have.
const MOST_KIB: u64 = 30 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_with_the_canary_example_it_has_less_than_30_mebibytes() {
    let switchyard = Switchyard::run(&example("canary")).await;
    switchyard.splits(20, 80).await;
    let memory = switchyard.process.memory();
    eprintln!("idle: {} KiB, of {}", memory.now_kib, Path::new(&binary("switchyard")).display());
    assert!(memory.now_kib < MOST_KIB, "{memory:?}");
}
