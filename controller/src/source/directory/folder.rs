//! What a folder of manifests says, as a state machine: looks at the files in, events out. It touches no disk and reads no
//! clock.
//!
//! What is in force is derived anew with each look from what every file says now and what was in force before:
//! - an object that one file says, whole and valid, is in force;
//! - an object whose document is there but refused, or that two files claim, stays as it was;
//! - an object whose file cannot be read to its end stays as it was;
//! - an object that no file says any more is deleted, but only when that has been so for [`CONFIRM`] since its file was last
//!   written, or for [`LONGEST_WAIT`]: editors and deployments write in steps, and a file that is half written, emptied or
//!   renamed away for a moment deletes nothing;
//! - while the folder itself is gone, everything stays as it was.
//!
//! An object that moves to another file in one look is an update (`an_object_that_moves_to_another_file_is_an_update`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use switchyard_crds::{Finding, Place, Reason};

use crate::object::{Object, ObjectKey};
use crate::source::Event;
use crate::source::manifest::{self, Loaded, Manifest};

/// How long an object must be missing before it counts as deleted.
pub const CONFIRM: Duration = Duration::from_millis(300);

/// A file that is written again and again is not waited for any longer than this.
pub const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What a look at the folder found.
#[derive(Clone, Debug)]
pub enum Look {
    /// The folder cannot be read; why.
    Gone(String),
    /// What has changed since the look before.
    Changes {
        /// The files that are new or different: their text, or why they cannot be read.
        changed: BTreeMap<PathBuf, Result<String, Unreadable>>,
        /// The files that are no more.
        gone: BTreeSet<PathBuf>,
    },
}

/// Why a file says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Why, as a lower-case fragment.
    pub why: String,
    /// Line and column of what is to blame; none when it is the file as a whole.
    pub at: Option<(usize, usize)>,
}

impl From<String> for Unreadable {
    fn from(why: String) -> Self {
        Self { why, at: None }
    }
}

/// An object in force, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The object.
    pub object: Object,
    /// The file that said it.
    pub file: PathBuf,
    /// Where in the file; not known of an object that was in force before a restart.
    pub place: Option<Place>,
}

/// The folder, as far as it is known.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    held: BTreeMap<ObjectKey, Held>,
    /// What was in force before a restart; void after the first look that finds the folder.
    last_good: BTreeMap<ObjectKey, Held>,
    missing_since: BTreeMap<ObjectKey, Missing>,
    reported: BTreeMap<String, Vec<Finding>>,
    synced: bool,
}

#[derive(Debug)]
struct File {
    /// Its text, shortened, or why it cannot be read.
    text: Result<[u8; 32], Unreadable>,
    /// What it says, or why it cannot be read.
    says: Result<Manifest, Finding>,
    /// When it was last found to hold something else.
    changed: Instant,
}

/// How long no file has said an object.
#[derive(Debug)]
struct Missing {
    /// Since this look.
    first: Instant,
    /// Since this look its file has not changed either.
    quiet: Instant,
}

impl File {
    /// Whether all of it could be read, so that what it does not say is not there.
    fn is_whole(&self) -> bool {
        self.says.as_ref().is_ok_and(|manifest| manifest.whole)
    }
}

/// What a file has to say about an object.
enum Claim<'a> {
    Says(&'a Path, &'a Loaded),
    /// Its document is there, but is not valid.
    Refused(&'a Place),
}

impl Claim<'_> {
    fn place(&self) -> &Place {
        match self {
            Self::Says(_, loaded) => &loaded.place,
            Self::Refused(place) => place,
        }
    }
}

impl Folder {
    /// A folder nothing is known of yet, but for what was in force before a restart.
    pub fn new(root: &Path, last_good: BTreeMap<ObjectKey, Held>) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            held: BTreeMap::new(),
            last_good,
            missing_since: BTreeMap::new(),
            reported: BTreeMap::new(),
            synced: false,
        }
    }

    /// Takes a look in; what it changes.
    pub fn look(&mut self, look: Look, now: Instant) -> Vec<Event> {
        let (changed, gone) = match look {
            Look::Gone(why) => return self.is_gone(why),
            Look::Changes { changed, gone } => (changed, gone),
        };
        for path in gone {
            self.files.remove(&path);
        }
        for (path, text) in changed {
            let short = text.as_ref().map(|text| Sha256::digest(text).into()).map_err(Clone::clone);
            // A file that was read once more to be sure, and holds what it held.
            if self.files.get(&path).is_some_and(|file| file.text == short) {
                continue;
            }
            let says = match text {
                Ok(text) => Ok(manifest::read(&path, &text)),
                Err(unreadable) => Err(finding_of(&path, unreadable)),
            };
            self.files.insert(path, File { text: short, says, changed: now });
        }
        let mut findings = self.own_findings();
        let mut events = self.settle(now, &mut findings);
        events.extend(self.report(findings));
        if !self.synced {
            self.synced = true;
            self.last_good.clear();
            events.push(Event::Synced);
        }
        events
    }

    /// Whether another look is due after [`CONFIRM`]: something is missing, and not for long enough to be deleted.
    pub fn is_unsure(&self) -> bool {
        !self.missing_since.is_empty()
    }

    /// What is in force, by key.
    pub fn held(&self) -> &BTreeMap<ObjectKey, Held> {
        &self.held
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    fn is_gone(&mut self, why: String) -> Vec<Event> {
        let mut findings = self.reported.clone();
        let note =
            format!("{why}; what held before stays in force, and the folder is read again as soon as it is there");
        findings.insert(self.root.display().to_string(), vec![finding_of(&self.root, note.into())]);
        self.report(findings)
    }

    /// What is wrong with each file by itself.
    fn own_findings(&self) -> BTreeMap<String, Vec<Finding>> {
        let of = |file: &File| match &file.says {
            Ok(manifest) => manifest.findings.clone(),
            Err(finding) => vec![finding.clone()],
        };
        self.files.iter().map(|(path, file)| (path.display().to_string(), of(file))).collect()
    }

    /// Brings what is in force up to what the files say.
    fn settle(&mut self, now: Instant, findings: &mut BTreeMap<String, Vec<Finding>>) -> Vec<Event> {
        let mut claims: BTreeMap<ObjectKey, Vec<Claim<'_>>> = BTreeMap::new();
        for (path, file) in &self.files {
            let Ok(manifest) = &file.says else { continue };
            for loaded in &manifest.objects {
                claims.entry(loaded.object.key()).or_default().push(Claim::Says(path, loaded));
            }
            for (key, place) in &manifest.refused {
                claims.entry(key.clone()).or_default().push(Claim::Refused(place));
            }
        }
        let mut wanted: BTreeMap<ObjectKey, Held> = BTreeMap::new();
        for (key, claims) in &claims {
            if let [Claim::Says(file, loaded)] = claims.as_slice() {
                let held =
                    Held { object: loaded.object.clone(), file: (*file).to_owned(), place: Some(loaded.place.clone()) };
                wanted.insert(key.clone(), held);
                continue;
            }
            if claims.len() > 1 {
                report_duplicate(key, claims, findings);
            }
            if let Some(before) = self.held.get(key).or_else(|| self.last_good.get(key)) {
                wanted.insert(key.clone(), before.clone());
            }
        }
        for (key, before) in self.held.iter().chain(&self.last_good) {
            let in_broken_file = self.files.get(&before.file).is_some_and(|file| !file.is_whole());
            if in_broken_file && !wanted.contains_key(key) {
                wanted.insert(key.clone(), before.clone());
            }
        }
        self.confirm_missing(now, &mut wanted);
        self.replace(wanted)
    }

    /// Keeps what has not been missing for long.
    fn confirm_missing(&mut self, now: Instant, wanted: &mut BTreeMap<ObjectKey, Held>) {
        self.missing_since.retain(|key, _| self.held.contains_key(key) && !wanted.contains_key(key));
        for (key, held) in &self.held {
            if wanted.contains_key(key) {
                continue;
            }
            let missing = self.missing_since.entry(key.clone()).or_insert(Missing { first: now, quiet: now });
            // A file that is still being written starts the wait anew, but not for ever.
            missing.quiet = self.files.get(&held.file).map_or(missing.quiet, |file| file.changed.max(missing.quiet));
            let for_long = now.saturating_duration_since(missing.first) >= LONGEST_WAIT;
            if !for_long && now.saturating_duration_since(missing.quiet) < CONFIRM {
                wanted.insert(key.clone(), held.clone());
            } else {
                self.missing_since.remove(key);
            }
        }
    }

    fn replace(&mut self, wanted: BTreeMap<ObjectKey, Held>) -> Vec<Event> {
        let before = std::mem::replace(&mut self.held, wanted);
        let applied =
            self.held.iter().filter(|(key, new)| before.get(*key).map(|old| &old.object) != Some(&new.object));
        let deleted = before.keys().filter(|key| !self.held.contains_key(*key));
        let applied = applied.map(|(_, new)| Event::Applied(new.object.clone()));
        applied.chain(deleted.cloned().map(Event::Deleted)).collect()
    }

    /// Tells the lists of findings that are not as they were told.
    fn report(&mut self, mut findings: BTreeMap<String, Vec<Finding>>) -> Vec<Event> {
        findings.retain(|_, findings| !findings.is_empty());
        findings.values_mut().for_each(|findings| findings.sort());
        let before = std::mem::replace(&mut self.reported, findings);
        let changed = self.reported.iter().filter(|(origin, findings)| before.get(*origin) != Some(findings));
        let changed = changed.map(|(origin, findings)| (origin.clone(), findings.clone()));
        let healed = before.keys().filter(|origin| !self.reported.contains_key(*origin));
        let healed = healed.map(|origin| (origin.clone(), Vec::new()));
        changed.chain(healed).map(|(origin, findings)| Event::Findings { origin, findings }).collect()
    }
}

fn finding_of(path: &Path, unreadable: Unreadable) -> Finding {
    let mut finding = Finding::error(Reason::Unreadable, "", unreadable.why);
    let (line, column) = unreadable.at.unwrap_or_default();
    finding.place = Some(Place { file: path.to_owned(), line, column, length: 1 });
    finding
}

/// Each of the files that claim an object is told of the others.
fn report_duplicate(key: &ObjectKey, claims: &[Claim<'_>], findings: &mut BTreeMap<String, Vec<Finding>>) {
    for (at, claim) in claims.iter().enumerate() {
        let others = claims.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, claim)| {
            let place = claim.place();
            format!("{}:{}", place.file.display(), place.line)
        });
        let others = others.collect::<Vec<_>>().join(", ");
        let message = format!("{key} is also in {others}; what held before stays in force until one of them is gone");
        let mut finding = Finding::error(Reason::Duplicate, "metadata.name", message).about(&key.object_name());
        finding.place = Some(claim.place().clone());
        findings.entry(claim.place().file.display().to_string()).or_default().push(finding);
    }
}

#[cfg(test)]
mod tests;
