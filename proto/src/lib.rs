//! The wire between a controller and its agents: one delta stream per agent, as `switchyard.proto` describes it.
//!
//! This crate knows nothing of Kubernetes. It keeps one property of its own: the encoding of a resource is
//! deterministic (maps are sorted), so that a hash of it can serve as its version. Beside the messages it holds what both
//! sides must agree on to the letter.

/// The generated messages, client and server of `switchyard.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod v1 {
    tonic::include_proto!("switchyard.v1");
}

/// The spelling of paths.
pub mod path;
