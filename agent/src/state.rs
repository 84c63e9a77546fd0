//! What survives a restart: the last good configuration, in one file of the state folder.
//!
//! Keeps true: the file is whole or not there. It is written beside the old one, synced and renamed over it; it begins with a
//! mark, a version and a checksum, and one that does not hold is set aside with a warning, never a crash.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use switchyard_proto::v1;

use crate::resources::Resources;

const MARK: &[u8; 4] = b"SWYD";
const VERSION: u32 = 1;
const HEADER: usize = 4 + 4 + 32;

/// The file that holds the last good configuration.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// In this folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { path: folder.join("config") })
    }

    /// What was saved last; nothing if there is nothing, or nothing that holds.
    pub fn load(&self) -> Resources {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Resources::default(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the last good configuration");
                return Resources::default();
            }
        };
        match decode(&bytes) {
            Ok(resources) => resources,
            Err(why) => {
                let aside = self.path.with_extension("bad");
                tracing::warn!(path = %self.path.display(), aside = %aside.display(), why, "state file set aside");
                // It stays where it is if it cannot be moved, and is overwritten by the next save.
                let _ = fs::rename(&self.path, &aside);
                Resources::default()
            }
        }
    }

    /// Saves what is in force.
    ///
    /// # Errors
    /// The file cannot be written; the one before is still there.
    pub fn save(&self, resources: &Resources) -> io::Result<()> {
        let part = self.path.with_extension("part");
        let mut file = fs::File::create(&part)?;
        file.write_all(&encode(resources))?;
        file.sync_all()?;
        fs::rename(&part, &self.path)
    }
}

fn encode(resources: &Resources) -> Vec<u8> {
    let update = v1::Update::of(resources.revision, resources.all().map(|(_, resource)| resource.clone()));
    let content = update.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(MARK);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&Sha256::digest(&content));
    bytes.extend_from_slice(&content);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Resources, &'static str> {
    let (header, content) = bytes.split_at_checked(HEADER).ok_or("it is shorter than its header")?;
    if &header[..4] != MARK {
        return Err("it is not a state file");
    }
    if header[4..8] != VERSION.to_be_bytes() {
        return Err("it is of another version");
    }
    if header[8..] != Sha256::digest(content)[..] {
        return Err("its checksum does not hold");
    }
    let update = v1::Update::decode(content).map_err(|_| "its content cannot be read")?;
    let mut resources = Resources::default();
    resources.apply(update);
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::tests_support::{instances, routes};

    fn some() -> Resources {
        let mut resources = Resources::default();
        resources.revision = 7;
        resources.put(routes("shop", "a"));
        resources.put(instances("shop", "a", &[("127.0.0.1", 9000, "v1")]));
        resources
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(&folder.path().join("deep/er")).unwrap();
        assert_eq!(file.load().all().count(), 0);
        file.save(&some()).unwrap();
        let loaded = file.load();
        assert_eq!((loaded.revision, loaded.all().count()), (7, 2));
    }

    #[test]
    fn a_file_torn_anywhere_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path()).unwrap();
        file.save(&some()).unwrap();
        let whole = fs::read(&file.path).unwrap();
        for length in 0..whole.len() {
            fs::write(&file.path, &whole[..length]).unwrap();
            assert_eq!(file.load().all().count(), 0, "torn at {length}");
            assert!(!file.path.exists());
        }
        let mut flipped = whole;
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&file.path, flipped).unwrap();
        assert_eq!(file.load().all().count(), 0);
    }
}
