//! The harness of the end-to-end tests: the binaries as a user starts them, instances to send traffic to, callers of every kind.
//!
//! Keeps true: nothing here knows private parts of the other crates. What is asked of a process is asked over its sockets, its
//! files and its output. Nothing sleeps in order to wait: [`wait_for`] looks until it is so, or until it gives up with a
//! message. What a test started ends with the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails by panicking, where the test shows it"
)]

/// Instances: servers with knobs.
pub mod backend;
/// Building and finding the binaries.
pub mod binaries;
/// How far chance may go.
pub mod chance;
/// Callers with HTTP clients.
pub mod client;
/// A real API server.
pub mod cluster;
/// Objects to be refused and objects to be taken.
pub mod corpus;
/// A stand-in for a controller.
pub mod feed;
/// A gRPC service and its client.
pub mod grpc;
/// Callers that keep asking.
pub mod load;
/// Folders of manifests.
pub mod manifests;
/// A node and its pods, as network namespaces.
#[cfg(target_os = "linux")]
pub mod node;
/// Processes under test.
pub mod process;
/// Callers and instances that speak bytes.
pub mod raw;
/// A node where an agent takes connections in.
#[cfg(target_os = "linux")]
pub mod scene;
/// Everything at once, for long.
pub mod soak;

pub use binaries::binary;

use std::time::{Duration, Instant};

/// How long a condition may take to come true. Generous: on a busy machine everything takes its time, and a test that passes
/// does not wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so.
///
/// # Panics
/// When it is not so within [`PATIENCE`].
pub async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for this, and it never was so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Gives what the future gives.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for this, and it never came: {what}"),
    }
}
