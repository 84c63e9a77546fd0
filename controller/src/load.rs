//! Reads manifests once, for whoever only wants to know what they say: `check` and `explain`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use switchyard_crds::{Finding, ObjectName, Place};

use crate::compile;
use crate::object::ObjectKey;
use crate::source::Event;
use crate::source::directory::disk::{self, Disk};
use crate::source::directory::folder::{Folder, Look};
use crate::world::World;

/// What the manifests say.
#[derive(Debug)]
pub struct Loaded {
    /// The objects.
    pub world: World,
    /// All that is to be said of them, with places, sorted by place.
    pub findings: Vec<Finding>,
    /// How many files were read.
    pub files: usize,
    /// How many objects are in the world.
    pub objects: usize,
    /// Where each object was written.
    pub places: BTreeMap<ObjectKey, Place>,
}

/// Reads files and folders; `-` is the standard input. What is wrong inside them is a finding.
///
/// # Errors
/// When a path is not there, or the standard input cannot be read.
pub fn load(paths: &[PathBuf]) -> io::Result<Loaded> {
    let mut changed = BTreeMap::new();
    for path in paths {
        if path == Path::new("-") {
            changed.insert(PathBuf::from("<stdin>"), disk::text(io::stdin().lock(), 0));
        } else if std::fs::metadata(path).map_err(|error| about(path, &error))?.is_dir() {
            match Disk::new(path).look() {
                Look::Changes { changed: files, .. } => changed.extend(files),
                Look::Gone(why) => return Err(io::Error::other(format!("{}: {why}", path.display()))),
            }
        } else {
            changed.insert(path.clone(), disk::read(path));
        }
    }
    let mut folder = Folder::new(Path::new(""), BTreeMap::new());
    let mut world = World::default();
    let mut findings = Vec::new();
    for event in folder.look(Look::Changes { changed, gone: BTreeSet::new() }, Instant::now()) {
        world.apply(&event);
        if let Event::Findings { findings: of_file, .. } = event {
            findings.extend(of_file);
        }
    }
    let held = folder.held().iter();
    let places: BTreeMap<_, _> = held.filter_map(|(key, held)| Some((key.clone(), held.place.clone()?))).collect();
    let by_name: BTreeMap<_, _> = places.iter().map(|(key, place)| (key.object_name(), place)).collect();
    findings.extend(compile::all_findings(&world).into_iter().map(|mut finding| {
        finding.place = finding.place.or_else(|| by_name.get(&finding.object).map(|place| (*place).clone()));
        finding
    }));
    findings.sort_by(|a, b| (&a.place, a).cmp(&(&b.place, b)));
    Ok(Loaded { objects: world.len(), world, findings, files: folder.files(), places })
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Loaded {
    /// Where an object was written.
    pub fn place(&self, object: &ObjectName) -> Option<Place> {
        self.places.iter().find(|(key, _)| key.object_name() == *object).map(|(_, place)| place.clone())
    }
}
