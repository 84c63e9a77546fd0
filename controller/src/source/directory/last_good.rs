//! What was in force, kept on disk, so that a restart beside a broken file changes nothing.
//!
//! It is one JSON file, replaced whole: written beside, flushed and renamed. It is never read for an object that the
//! folder says well; a file that does not parse is set aside and nothing of it is used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::object::{Object, ObjectKey};
use crate::source::directory::folder::Held;

/// A folder per manifests folder under the user's state home (the XDG base directory specification). `None`: there is no home.
pub fn state_folder(manifests: &Path) -> Option<PathBuf> {
    let home = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(home.join("switchyard").join(state_name(&std::path::absolute(manifests).ok()?)))
}

/// One name for an absolute path: what people know it by, and a hash of all of it, so that no two paths get the same.
fn state_name(path: &Path) -> String {
    // Without a slash at the end, which means nothing.
    let path: PathBuf = path.components().collect();
    let known_by = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
    let known_by: String = known_by.chars().take(40).map(plain).collect();
    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{known_by}-{hash}")
}

/// Where the objects in force are kept.
#[derive(Debug)]
pub struct LastGood {
    file: PathBuf,
    root: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    objects: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// Seen from the folder, so that the folder may be named in another way after the restart.
    file: PathBuf,
    object: Object,
}

/// Changes when [`Object`] does in a way that old text would be read wrongly.
const FORMAT: u32 = 1;

impl LastGood {
    /// Kept in `objects.json` of this state folder, for the manifests in `root`.
    pub fn new(state: &Path, root: &Path) -> Self {
        Self { file: state.join("objects.json"), root: root.to_owned() }
    }

    /// What was kept; nothing when there is none. Text that cannot be understood is renamed to end in `.bad`.
    pub fn load(&self) -> BTreeMap<ObjectKey, Held> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "what was in force before cannot be read");
                return BTreeMap::new();
            }
        };
        let why = match serde_json::from_slice::<Stored>(&text) {
            Ok(stored) if stored.format == FORMAT => return self.held(stored),
            Ok(stored) => format!("it has format {}, this build reads format {FORMAT}", stored.format),
            Err(error) => error.to_string(),
        };
        let bad = self.file.with_extension("json.bad");
        tracing::warn!(file = %self.file.display(), set_aside = %bad.display(), why, "what was in force before is not understood");
        if let Err(error) = fs::rename(&self.file, &bad) {
            tracing::warn!(file = %self.file.display(), %error, "it cannot be set aside");
        }
        BTreeMap::new()
    }

    fn held(&self, stored: Stored) -> BTreeMap<ObjectKey, Held> {
        let held = |entry: Entry| {
            let file = self.root.join(entry.file);
            (entry.object.key(), Held { object: entry.object, file, place: None })
        };
        stored.objects.into_iter().map(held).collect()
    }

    /// Keeps what is in force now.
    ///
    /// # Errors
    /// When the state folder cannot be written; what was kept before is still whole then.
    pub fn save(&self, held: &BTreeMap<ObjectKey, Held>) -> io::Result<()> {
        let entry = |held: &Held| Entry {
            file: held.file.strip_prefix(&self.root).unwrap_or(&held.file).to_owned(),
            object: held.object.clone(),
        };
        let stored = Stored { format: FORMAT, objects: held.values().map(entry).collect() };
        let text = serde_json::to_vec(&stored)?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let beside = self.file.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, &self.file)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_a_state_folder_of_its_own() {
        let names =
            ["/col/a-/b", "/col/a/-b", "/col/a/b", "/col/a-b", "/", "/b"].map(|path| state_name(Path::new(path)));
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
        assert!(names[0].starts_with("b-"), "{names:?}");
        assert_eq!(state_name(Path::new("/col/a/")), state_name(Path::new("/col/a")));
    }

    #[test]
    fn a_long_path_in_any_script_has_one_too() {
        for name in ["ü".repeat(120), "漢字".repeat(50), "/x".repeat(2000)] {
            let name = state_name(&Path::new("/").join(name));
            assert!(name.len() < 64 && name.is_ascii(), "{name}");
        }
    }
}
