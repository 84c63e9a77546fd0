//! A file of the state folder: whole, or not there.
//!
//! Keeps true:
//! - It begins with a mark, a version and a checksum; what does not hold is set aside with a warning, never a crash
//!   (`a_file_torn_anywhere_is_set_aside`).
//! - It is written beside the old one under a name that nobody else uses, synced and renamed over it. In a rolling update two agents
//!   write in the same folder; each writes whole files.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::clock;

const MARK: &[u8; 4] = b"SWYD";
const HEADER: usize = 4 + 4 + 32;

/// What a writer that died left behind is removed once it is older than this. Nobody writes for so long.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// One file of the state folder.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
    /// Of its content.
    version: u32,
}

impl File {
    /// Of this name, in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn new(folder: &Path, name: &str, version: u32) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = Self { path: folder.join(name), version };
        file.clear(folder)?;
        Ok(file)
    }

    /// Removes what writers left behind that were killed.
    fn clear(&self, folder: &Path) -> io::Result<()> {
        let now = clock::system();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_part = path.extension().is_some_and(|end| end == "part")
                && path.file_stem().is_some_and(|stem| Path::new(stem).file_stem() == self.path.file_name());
            let written = fs::metadata(&path).and_then(|about| about.modified());
            // Another agent may have removed it meanwhile.
            if is_part && written.is_ok_and(|written| is_old(written, now)) {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Its content; nothing if there is none, or none that holds.
    pub fn read(&self) -> Option<Vec<u8>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read a state file");
                return None;
            }
        };
        match open(&bytes, self.version) {
            Ok(content) => Some(content.to_vec()),
            Err(why) => {
                self.set_aside(why);
                None
            }
        }
    }

    /// Takes what is no use out of the way, and leaves it for whoever wants to look.
    pub fn set_aside(&self, why: &str) {
        let aside = self.path.with_extension("bad");
        tracing::warn!(path = %self.path.display(), aside = %aside.display(), why, "state file set aside");
        // It stays where it is if it cannot be moved, and is overwritten by the next that is written.
        let _ = fs::rename(&self.path, &aside);
    }

    /// Puts this content in place of what there is.
    ///
    /// # Errors
    /// It cannot be written; what was there before still is.
    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        let part = self.path.with_extension(format!("{:016x}.part", SmallRng::from_os_rng().random::<u64>()));
        let written = write_synced(&part, &seal(content, self.version)).and_then(|()| fs::rename(&part, &self.path));
        if written.is_err() {
            // A disk that is full is not to be filled any further.
            let _ = fs::remove_file(&part);
        }
        written
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whichever way the clock has moved since.
fn is_old(written: SystemTime, now: SystemTime) -> bool {
    let age = now.duration_since(written).unwrap_or_else(|ahead| ahead.duration());
    age > LEFT_BEHIND
}

fn seal(content: &[u8], version: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(MARK);
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes.extend_from_slice(&Sha256::digest(content));
    bytes.extend_from_slice(content);
    bytes
}

fn open(bytes: &[u8], version: u32) -> Result<&[u8], &'static str> {
    let (header, content) = bytes.split_at_checked(HEADER).ok_or("it is shorter than its header")?;
    if &header[..4] != MARK {
        return Err("it is not a state file");
    }
    if header[4..8] != version.to_be_bytes() {
        return Err("it is of another version");
    }
    if header[8..] != Sha256::digest(content)[..] {
        return Err("its checksum does not hold");
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::new(&folder.path().join("deep/er"), "some", 1).unwrap();
        assert_eq!(file.read(), None);
        file.write(b"one").unwrap();
        file.write(b"two").unwrap();
        assert_eq!(file.read().unwrap(), b"two");
        assert_eq!(fs::read_dir(file.path.parent().unwrap()).unwrap().count(), 1, "no parts are left");
    }

    #[test]
    fn a_file_torn_anywhere_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::new(folder.path(), "some", 1).unwrap();
        file.write(b"content").unwrap();
        let whole = fs::read(&file.path).unwrap();
        for length in 0..whole.len() {
            fs::write(&file.path, &whole[..length]).unwrap();
            assert_eq!(file.read(), None, "torn at {length}");
            assert!(!file.path.exists() && file.path.with_extension("bad").exists());
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&file.path, flipped).unwrap();
        assert_eq!(file.read(), None);
        fs::write(&file.path, whole).unwrap();
        assert_eq!(File { version: 2, ..file }.read(), None, "of another version");
    }

    #[test]
    fn parts_that_were_left_behind_are_removed_and_those_that_are_being_written_stay() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["some.0123.part", "some.4567.part", "other.0123.part", "some"];
        for (name, age) in names.into_iter().zip([120, 0, 120, 120]) {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        File::new(folder.path(), "some", 1).unwrap();
        let left = names.map(|name| folder.path().join(name).exists());
        assert_eq!(left, [false, true, true, true]);
    }
}
