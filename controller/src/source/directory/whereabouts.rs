//! Which file each object in force is in, for findings that come up after reading: compiling knows objects, and people want
//! the line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use switchyard_crds::{Finding, ObjectName};

use crate::object::ObjectKey;
use crate::source::directory::disk;
use crate::source::directory::folder::Held;
use crate::source::manifest::Places;

/// The files of the objects in force; clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts {
    files: Arc<Mutex<BTreeMap<ObjectName, PathBuf>>>,
}

impl Whereabouts {
    /// Notes down what is in force now.
    pub fn note(&self, held: &BTreeMap<ObjectKey, Held>) {
        let files = held.iter().map(|(key, held)| (key.object_name(), held.file.clone())).collect();
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// Gives findings that have no place the one of their field. The files are read anew; where one has changed meanwhile,
    /// the place is that of the field as it stands there now.
    pub fn fill(&self, findings: &mut [Finding]) {
        let mut places: BTreeMap<PathBuf, Option<Places>> = BTreeMap::new();
        for finding in findings.iter_mut().filter(|finding| finding.place.is_none()) {
            let file = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&finding.object).cloned();
            let Some(file) = file else { continue };
            let of_file = places.entry(file).or_insert_with_key(|file| {
                let text = disk::read(file).ok()?;
                Some(Places::of_file(file, &text))
            });
            finding.place = of_file.as_ref().and_then(|places| places.field(&finding.object, &finding.field));
        }
    }
}
