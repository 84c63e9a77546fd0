//! Where objects come from. Every source tells the same [`Event`]s, in one stream, and nothing after it can tell a folder
//! from an API server.

use switchyard_crds::Finding;

use crate::object::{Object, ObjectKey};

/// Reads YAML into a tree that remembers where everything stood.
pub mod yaml;

/// Reads the documents of a file into objects, with findings for what is wrong.
pub mod manifest;

/// Kubernetes' own types, reduced.
mod typed;

/// The API server, watched.
pub mod kubernetes;

/// The texts of files, for showing lines of them.
pub mod texts;

/// A folder of manifests, watched.
pub mod directory;

/// What a source tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This object exists now, as given; an earlier one of the same key is gone.
    Applied(Object),
    /// This object exists no more.
    Deleted(ObjectKey),
    /// All that is wrong at this origin now (a file, or an object); an earlier list of the same origin is void, and an empty
    /// one means that it has healed. What held before of the objects concerned stays in force.
    Findings {
        /// A file's path, or an object's name.
        origin: String,
        /// What is wrong there.
        findings: Vec<Finding>,
    },
    /// How an object of ours stands at the API server, whether it is in order or not. A folder has none of that.
    Observed {
        /// Which object.
        key: ObjectKey,
        /// How it stands.
        observed: Observed,
    },
    /// All that exists has been told; from here on come changes.
    Synced,
}

/// What an API server keeps of an object beside what its author wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Grows with each change of the spec.
    pub generation: i64,
    /// Tells it from an earlier object of the same name.
    pub uid: String,
    /// Its status.
    pub status: serde_json::Value,
}
