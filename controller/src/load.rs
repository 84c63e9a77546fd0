//! Reads manifests once, for whoever only wants to know what they say: `check` and `explain`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use switchyard_crds::{Finding, ObjectName, Place};

use crate::compile;
use crate::object::ObjectKey;
use crate::source::Event;
use crate::source::directory::disk::{self, Disk};
use crate::source::directory::folder::{Folder, Look, Unreadable};
use crate::source::texts::Texts;
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
    /// The texts, for showing lines of them.
    pub texts: Texts,
}

/// Reads files and folders; `-` is the standard input. What is wrong inside them is a finding.
///
/// # Errors
/// When a path is not there, a folder has no manifests, or a file that is named, or the standard input, cannot be read.
pub fn load(paths: &[PathBuf]) -> io::Result<Loaded> {
    load_into(World::default(), paths)
}

/// The same, beside objects that are there already, such as a cluster's.
///
/// # Errors
/// As for [`load`].
pub fn load_into(world: World, paths: &[PathBuf]) -> io::Result<Loaded> {
    let mut named = Named::default();
    for path in paths {
        named.add(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    Ok(take(world, named))
}

/// The same of texts that are no files any more, such as those of a Git revision, by the names that they are to have.
pub fn load_texts(texts: impl IntoIterator<Item = (PathBuf, String)>) -> Loaded {
    let mut named = Named::default();
    for (name, text) in texts {
        named.texts.keep(&name, text.clone());
        named.files.insert(name, Ok(text));
    }
    take(World::default(), named)
}

fn take(mut world: World, named: Named) -> Loaded {
    let before = world.len();
    let is_all = before == 0 || named.files.is_empty();
    let mut folder = Folder::new(Path::new(""), BTreeMap::new());
    let mut findings = Vec::new();
    for event in folder.look(Look::Changes { changed: named.files, gone: BTreeSet::new() }, Instant::now()) {
        world.apply(&event);
        if let Event::Findings { findings: of_file, .. } = event {
            findings.extend(of_file);
        }
    }
    let held = folder.held().iter();
    let places: BTreeMap<_, _> = held.filter_map(|(key, held)| Some((key.clone(), held.place.clone()?))).collect();
    let by_name: BTreeMap<_, _> = places.iter().map(|(key, place)| (key.object_name(), place)).collect();
    // Of what was there already, nobody has asked.
    let of_all = compile::all_findings(&world).into_iter();
    let asked = of_all.filter(|finding| is_all || by_name.contains_key(&finding.object));
    findings.extend(asked.map(|mut finding| {
        finding.place = finding.place.or_else(|| by_name.get(&finding.object).map(|place| (*place).clone()));
        finding
    }));
    findings.sort_by(|a, b| (&a.place, a).cmp(&(&b.place, b)));
    Loaded {
        objects: if is_all { world.len() } else { places.len() },
        world,
        findings,
        files: folder.files(),
        places,
        texts: named.texts,
    }
}

/// What the paths that are named hold.
#[derive(Default)]
struct Named {
    files: BTreeMap<PathBuf, Result<String, Unreadable>>,
    /// The same by their real paths: what is named twice, however it is spelt, is there once.
    known: BTreeSet<PathBuf>,
    texts: Texts,
}

impl Named {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        if path == Path::new("-") {
            return self.standard_input();
        }
        let metadata = fs::metadata(path)?;
        let found = if metadata.is_dir() {
            match Disk::new(path).look() {
                Look::Gone(why) => return Err(io::Error::other(why)),
                Look::Changes { changed, .. } if changed.is_empty() => {
                    let why = "no manifests in this folder: they are files that end in .yaml, .yml or .json";
                    return Err(io::Error::other(why));
                }
                Look::Changes { changed, .. } => changed,
            }
        } else {
            BTreeMap::from([(path.to_owned(), disk::text(File::open(path)?, metadata.len())?)])
        };
        let real = |file: &PathBuf| fs::canonicalize(file).unwrap_or_else(|_| file.clone());
        let new: Vec<_> = found.into_iter().filter(|(file, _)| !self.known.contains(&real(file))).collect();
        self.known.extend(new.iter().map(|(file, _)| real(file)));
        self.files.extend(new);
        Ok(())
    }

    fn standard_input(&mut self) -> io::Result<()> {
        let name = PathBuf::from("<stdin>");
        if !self.files.contains_key(&name) {
            let text = disk::text(io::stdin().lock(), 0)?;
            if let Ok(text) = &text {
                self.texts.keep(&name, text.clone());
            }
            self.files.insert(name, text);
        }
        Ok(())
    }
}

impl Loaded {
    /// Where an object was written.
    pub fn place(&self, object: &ObjectName) -> Option<Place> {
        self.places.iter().find(|(key, _)| key.object_name() == *object).map(|(_, place)| place.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_named_twice_is_read_once() {
        let folder = folder(&[("a.yaml", SERVICE.as_bytes())]);
        let path = folder.path();
        let dotted = path.join("../").join(path.file_name().unwrap());
        let named = [path.to_owned(), dotted.clone(), path.join("a.yaml"), dotted.join("./a.yaml")];
        let loaded = load(&named).unwrap();
        assert_eq!((loaded.files, loaded.objects, loaded.findings), (1, 1, Vec::new()));
    }

    #[test]
    fn a_folder_without_manifests_and_a_file_that_cannot_be_read_are_errors() {
        let folder = folder(&[("README.md", b"")]);
        let error = load(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no manifests") && error.contains(folder.path().to_str().unwrap()), "{error}");
        // A file, and no one may read all of it.
        assert!(load(&[PathBuf::from("/proc/self/mem")]).is_err());
    }

    #[test]
    fn text_that_is_not_utf_8_is_shown_where_it_is_not() {
        let folder = folder(&[("a.yaml", b"a: b\n\xc3\xa9: \xff\n")]);
        let mut loaded = load(&[folder.path().to_owned()]).unwrap();
        let place = loaded.findings[0].place.clone().unwrap();
        assert_eq!((place.line, place.column), (2, 4));
        assert_eq!(loaded.texts.line(&place), Some("é: \u{fffd}"));
    }

    #[test]
    fn that_a_service_has_no_instances_is_said_where_any_are_known() {
        let rule = "apiVersion: switchyard.dev/v1alpha1\nkind: RouteRule\nmetadata: {name: r}\n\
                    spec: {service: a, destinations: [{service: a, version: v1}]}\n";
        let slice = |namespace: &str| {
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\n\
                 metadata: {{name: s, namespace: {namespace}, labels: {{kubernetes.io/service-name: b}}}}\n"
            )
        };
        let said = |more: &str| {
            let folder = folder(&[("a.yaml", format!("{SERVICE}---\n{rule}---\n{more}").as_bytes())]);
            let findings = load(&[folder.path().to_owned()]).unwrap().findings;
            findings.iter().any(|finding| finding.message.contains("no instances at all"))
        };
        assert!(!said(""), "a folder of rules cannot tell");
        assert!(!said(&slice("other")));
        assert!(said(&slice("default")));
    }
}
