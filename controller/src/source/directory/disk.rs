//! Looks at a folder on disk: which files are there, which have changed since the look before, and what they hold.
//!
//! A look costs one `stat` for each file; only what has changed is read. Symbolic links are followed, so a mounted
//! ConfigMap reads like a folder; names that begin with a dot are passed over, `..data` of a ConfigMap with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::source::directory::folder::{Look, Unreadable};
use crate::source::manifest::MAX_FILE_BYTES;

/// More files than this are not a folder of manifests but a mistake, such as `/`; the folder counts as unreadable.
pub const MAX_FILES: usize = 20_000;

/// Folders inside one another; more is a mistake.
const MAX_DEPTH: usize = 32;

/// A file that changed less than this before it was read may change again without its time moving: it is read once more.
const GRAIN: Duration = Duration::from_millis(100);

/// A folder on disk, and what was last seen there.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    seen: BTreeMap<PathBuf, Seen>,
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    File(Stamp),
    /// Something that cannot be read; why.
    Broken(String),
}

/// What tells that a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// It was read so soon after it changed that another change may not show.
    is_fresh: bool,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            is_fresh: false,
        }
    }

    fn read_at(mut self, modified: io::Result<SystemTime>, now: SystemTime) -> Self {
        self.is_fresh = modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age < GRAIN));
        self
    }
}

impl Disk {
    /// Nothing seen yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), seen: BTreeMap::new() }
    }

    /// Which folder stands at the root now; `None` when there is none.
    pub fn identity(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.root).ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// Whether some file must be read again soon, because it changed while it was read.
    pub fn is_unsure(&self) -> bool {
        self.seen.values().any(|seen| matches!(seen, Seen::File(stamp) if stamp.is_fresh))
    }

    /// What is there now, as a difference to the look before.
    pub fn look(&mut self) -> Look {
        let mut found = BTreeMap::new();
        if let Err(why) = walk(&self.root, &mut Vec::new(), &mut found) {
            return Look::Gone(why);
        }
        let missing: Vec<_> = self.seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let mut gone = BTreeSet::new();
        for path in missing {
            // Nothing is known about what stands below a folder that cannot be read.
            let is_hidden = path.ancestors().skip(1).any(|above| matches!(found.get(above), Some(Seen::Broken(_))));
            match self.seen.get(&path) {
                Some(seen) if is_hidden => {
                    found.insert(path, seen.clone());
                }
                _ => {
                    gone.insert(path);
                }
            }
        }
        let mut changed = BTreeMap::new();
        for (path, seen) in &mut found {
            if self.seen.get(path) == Some(seen) {
                continue;
            }
            let text = match seen {
                Seen::Broken(why) => Err(why.clone().into()),
                Seen::File(stamp) => {
                    let modified = fs::metadata(path).and_then(|meta| meta.modified());
                    *stamp = stamp.read_at(modified, SystemTime::now());
                    read(path)
                }
            };
            changed.insert(path.clone(), text);
        }
        self.seen = found;
        Look::Changes { changed, gone }
    }
}

/// Collects what could be manifests in a folder and below it. An error is about this very folder. `above` are the folders that it is
/// in, by device and inode: a link back to one of them says nothing new.
fn walk(folder: &Path, above: &mut Vec<(u64, u64)>, found: &mut BTreeMap<PathBuf, Seen>) -> Result<(), String> {
    if above.len() > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} folders are inside one another"));
    }
    let own = fs::metadata(folder).map_err(|error| format!("the folder cannot be read: {error}"))?;
    let own = (own.dev(), own.ino());
    if above.contains(&own) {
        return Ok(());
    }
    above.push(own);
    let walked = walk_entries(folder, above, found);
    above.pop();
    walked
}

fn walk_entries(folder: &Path, above: &mut Vec<(u64, u64)>, found: &mut BTreeMap<PathBuf, Seen>) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("the folder cannot be read: {error}"))?;
    for entry in entries {
        let path = entry.map_err(|error| format!("the folder cannot be read: {error}"))?.path();
        if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => {
                if let Err(why) = walk(&path, above, found) {
                    found.insert(path, Seen::Broken(why));
                }
            }
            _ if !is_manifest(&path) => {}
            Ok(meta) if meta.is_file() => {
                found.insert(path, Seen::File(Stamp::of(&meta)));
            }
            Ok(_) => {
                found.insert(path, Seen::Broken("this is not a file".to_owned()));
            }
            // It was there a moment ago: it is gone, unless it is a link to nothing.
            Err(_) if fs::symlink_metadata(&path).is_err() => {}
            Err(error) => {
                let target = fs::read_link(&path).map(|target| format!(" (a link to {})", target.display()));
                let why = format!("the file cannot be read{}: {error}", target.unwrap_or_default());
                found.insert(path, Seen::Broken(why));
            }
        }
        if found.len() > MAX_FILES {
            return Err(format!("there are more than {MAX_FILES} files in the folder"));
        }
    }
    Ok(())
}

/// Whether a file's name is that of a manifest.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

/// The text of a file, or why there is none. Reads no more than [`MAX_FILE_BYTES`] of it.
pub fn read(path: &Path) -> Result<String, Unreadable> {
    let read = fs::File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        text(file, length)
    });
    read.unwrap_or_else(|error| Err(format!("the file cannot be read: {error}").into()))
}

/// The text that a reader gives, which is said to be so long, or why it is none.
///
/// # Errors
/// What the reader says.
pub fn text(from: impl Read, length: u64) -> io::Result<Result<String, Unreadable>> {
    let limit = MAX_FILE_BYTES;
    let too_long = || Ok(Err(format!("the file is too long: {} MiB is the most that is read", limit >> 20).into()));
    if length > limit {
        return too_long();
    }
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return too_long();
    }
    Ok(String::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let byte = error.as_bytes().get(good.len()).copied().unwrap_or_default();
        let why = format!("the file is not UTF-8 text: the byte 0x{byte:02x} does not belong there");
        Unreadable { why, at: Some((line, column)) }
    }))
}
