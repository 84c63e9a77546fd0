//! The controller from outside: manifests in, configuration and findings out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod golden;
mod stream;
