//! The wire between a controller and its agents: one delta stream per agent, as `switchyard.proto` describes it.
//!
//! This crate knows nothing of Kubernetes. It keeps one property of its own: the encoding of a resource is
//! deterministic (maps are sorted), so that a hash of it can serve as its version. Beside the messages it holds what both
//! sides must agree on to the letter.

use prost::Message as _;

/// The generated messages, client and server of `switchyard.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod v1 {
    tonic::include_proto!("switchyard.v1");
}

/// The spelling of paths.
pub mod path;

impl v1::Update {
    /// An update that brings these resources, and takes nothing away.
    pub fn of(revision: u64, resources: impl IntoIterator<Item = v1::Resource>) -> Self {
        let upserts = resources.into_iter().map(|resource| resource.encode_to_vec().into()).collect();
        Self { revision, upserts, ..Self::default() }
    }

    /// The resources that it brings.
    ///
    /// # Errors
    /// What comes in place of one that cannot be read.
    pub fn resources(&self) -> impl Iterator<Item = Result<v1::Resource, prost::DecodeError>> {
        self.upserts.iter().map(|encoded| v1::Resource::decode(encoded.clone()))
    }

    /// The same in messages of about this many bytes of resources each; one that is larger by itself is a message of its own.
    pub fn parts(self, bytes: usize) -> Vec<Self> {
        let mut parts = vec![Self { removals: self.removals, revision: self.revision, ..Self::default() }];
        let mut size = 0;
        for resource in self.upserts {
            if size > 0 && size + resource.len() > bytes {
                parts.push(Self { revision: self.revision, ..Self::default() });
                size = 0;
            }
            size += resource.len();
            if let Some(part) = parts.last_mut() {
                part.upserts.push(resource);
            }
        }
        let last = parts.len() - 1;
        parts[..last].iter_mut().for_each(|part| part.more = true);
        parts[last].evidence = self.evidence;
        parts
    }

    /// Takes in the next message of the same revision.
    pub fn extend(&mut self, next: Self) {
        self.upserts.extend(next.upserts);
        self.removals.extend(next.removals);
        self.evidence = next.evidence.or(self.evidence.take());
        self.more = next.more;
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn parts_are_bounded_and_make_the_whole_again() {
        let resource = |size: usize| v1::Resource { version: "x".repeat(size), ..v1::Resource::default() };
        let removals = vec![v1::ResourceKey::default()];
        let evidence = Some("seen".into());
        let whole = v1::Update { removals, evidence, ..v1::Update::of(7, [10, 10, 500, 10, 90, 10].map(resource)) };
        let parts = whole.clone().parts(100);
        let sizes: Vec<usize> = parts.iter().map(|part| part.upserts.len()).collect();
        assert_eq!(sizes, [2, 1, 1, 1, 1]);
        assert!(parts.iter().all(|part| part.revision == 7));
        let mut parts = parts.into_iter();
        let mut joined = parts.next().unwrap_or_default();
        for part in parts {
            assert!(joined.more);
            joined.extend(part);
        }
        assert_eq!(joined, whole);
        assert_eq!(v1::Update::of(3, []).parts(100), [v1::Update::of(3, [])]);
    }
}
