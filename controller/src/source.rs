//! Where objects come from. Every source tells the same [`Event`]s, in one stream, and nothing after it can tell a folder
//! from an API server.

use switchyard_crds::Finding;

use crate::object::{Object, ObjectKey};

/// Reads YAML into a tree that remembers where everything stood.
pub mod yaml;

/// Reads the documents of a file into objects, with findings for what is wrong.
pub mod manifest;

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
    /// All that exists has been told; from here on come changes.
    Synced,
}
