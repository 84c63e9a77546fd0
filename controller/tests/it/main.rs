//! The controller from outside: manifests in, configuration and findings out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod corpus;
mod golden;
mod stream;
