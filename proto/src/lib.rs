//! The wire between a controller and its agents: one delta stream per agent, as `switchyard.proto` describes it.
//!
//! This crate knows nothing of Kubernetes. It keeps one property of its own: the encoding of a resource is
//! deterministic (maps are sorted), so that a hash of it can serve as its version.

use prost::Message as _;

/// The generated messages, client and server of `switchyard.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod v1 {
    tonic::include_proto!("switchyard.v1");
}

impl v1::Update {
    /// An update that brings these resources, and takes nothing away.
    pub fn of(revision: u64, resources: impl IntoIterator<Item = v1::Resource>) -> Self {
        let upserts = resources.into_iter().map(|resource| resource.encode_to_vec().into()).collect();
        Self { revision, upserts, removals: Vec::new() }
    }

    /// The resources that it brings.
    ///
    /// # Errors
    /// What comes in place of one that cannot be read.
    pub fn resources(&self) -> impl Iterator<Item = Result<v1::Resource, prost::DecodeError>> {
        self.upserts.iter().map(|encoded| v1::Resource::decode(encoded.clone()))
    }
}
