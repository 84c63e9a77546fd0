//! What was in force, kept on disk, so that a restart beside a broken file changes nothing.
//!
//! It is one JSON file, replaced whole: written beside, flushed and renamed. It is never read for an object that the
//! folder says well; a file that does not parse is set aside and nothing of it is used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::object::{Object, ObjectKey};
use crate::source::directory::folder::Held;

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
