//! What survives a restart, in the state folder: the last good configuration, and what was learnt of instances.

use std::io;
use std::path::Path;

use prost::Message;
use switchyard_proto::v1;

use crate::resources::Resources;

/// A file that is whole, or not there.
pub mod file;
/// Circuits and budgets as they are written down.
pub mod remembered;
/// Who writes them down, and when.
pub mod writer;

use file::File;

/// The file that holds the last good configuration.
#[derive(Clone, Debug)]
pub struct StateFile(File);

impl StateFile {
    /// In this folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        File::new(folder, "config", 1).map(Self)
    }

    /// What was saved last; nothing if there is nothing, or nothing that holds.
    pub fn load(&self) -> Resources {
        let mut resources = Resources::default();
        if let Some(content) = self.0.read() {
            match v1::Update::decode(&*content) {
                Ok(update) => {
                    resources.apply(update);
                }
                Err(_) => self.0.set_aside("its content cannot be read"),
            }
        }
        resources
    }

    /// Saves what is in force.
    ///
    /// # Errors
    /// The file cannot be written; the one before is still there.
    pub fn save(&self, resources: &Resources) -> io::Result<()> {
        let update = v1::Update::of(resources.revision, resources.all().map(|(_, resource)| resource.clone()));
        self.0.write(&update.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::tests_support::{instances, routes};

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path()).unwrap();
        assert_eq!(file.load().all().count(), 0);
        let mut resources = Resources::default();
        resources.revision = 7;
        resources.put(routes("shop", "a"));
        resources.put(instances("shop", "a", &[("127.0.0.1", 9000, "v1")]));
        file.save(&resources).unwrap();
        let loaded = file.load();
        assert_eq!((loaded.revision, loaded.all().count()), (7, 2));
    }
}
