//! Reads the documents of a file into objects, with findings, each with its place, for what is wrong.
//!
//! What is broken deletes nothing. A document that is ours but wrong is *refused* by its key, and what held of that object
//! before stays. Where it cannot be told which objects a file would speak of (it is no YAML, or a document has no name),
//! the file is not *whole*, and all that it told before stays.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use switchyard_crds::findings::ObjectName;
use switchyard_crds::{Finding, Place, Reason};

use crate::object::{Object, ObjectKey};
use crate::source::yaml::{self, Document, Node, Span, Value};

/// Which kinds there are, and what is none of ours.
mod kinds;
/// One object, read as what its kind is.
mod read_object;
/// Kubernetes' own objects, reduced to ours.
mod reduce;

/// Files larger than this are not read: a folder's objects are text that people and their tools write.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Objects that are in order, in the order in which they stand.
    pub objects: Vec<Loaded>,
    /// Objects that are spoken of, but not in order, and where first: what held of them before stays.
    pub refused: BTreeMap<ObjectKey, Place>,
    /// What is to be said, in the order in which it stands in the file.
    pub findings: Vec<Finding>,
    /// Whether it is known of which objects the file speaks. If not, what it told before stays.
    pub whole: bool,
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The object.
    pub object: Object,
    /// The place of its name.
    pub place: Place,
}

/// Reads a file's text. `file` is for the places only.
pub fn read(file: &Path, text: &str) -> Manifest {
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(broken) => {
            let mut finding = Finding::error(Reason::Syntax, "", broken.message);
            finding.place = Some(place_in(file, broken.span));
            return Manifest { findings: vec![finding], whole: false, ..Manifest::default() };
        }
    };
    let mut reading = Reading { file, told: Vec::new(), findings: Vec::new(), whole: true };
    for document in &documents {
        reading.document(document);
    }
    reading.finish()
}

/// Where the fields of a file's objects stand, for findings that come up later than reading.
pub struct Places {
    file: PathBuf,
    documents: Vec<Document>,
    /// For each object, its document and its position among that document's objects.
    objects: HashMap<ObjectName, (usize, usize)>,
}

impl Places {
    /// Of a file with this text; there are none in one that is not YAML.
    pub fn of_file(file: &Path, text: &str) -> Self {
        let documents = yaml::documents(text).unwrap_or_default();
        let mut objects = HashMap::new();
        for (i, document) in documents.iter().enumerate() {
            for (j, node) in objects_in(&document.root).into_iter().enumerate() {
                objects.entry(name_of(node)).or_insert((i, j));
            }
        }
        Self { file: file.to_owned(), documents, objects }
    }

    /// Where the field of an object stands, or what is nearest to it; nothing, if the object is not in the file.
    pub fn field(&self, object: &ObjectName, field: &str) -> Option<Place> {
        let (document, position) = self.objects.get(object)?;
        let nodes = objects_in(&self.documents.get(*document)?.root);
        Some(place_in(&self.file, field_span(nodes.get(*position)?, field)))
    }
}

/// The file as it is being read.
struct Reading<'a> {
    file: &'a Path,
    /// Every object spoken of, in order: the object itself if it is in order.
    told: Vec<Told>,
    findings: Vec<Finding>,
    whole: bool,
}

struct Told {
    key: ObjectKey,
    place: Place,
    object: Option<Object>,
}

impl Reading<'_> {
    fn document(&mut self, document: &Document) {
        if document.root.value == Value::Null && document.problems.is_empty() {
            return;
        }
        let from = self.told.len();
        for node in objects_in(&document.root) {
            self.object(node);
        }
        let only = match &self.told[from..] {
            [one] => one.key.object_name(),
            _ => ObjectName::default(),
        };
        for problem in &document.problems {
            let mut finding = Finding::error(Reason::Syntax, "", &problem.message).about(&only);
            finding.severity = problem.severity;
            finding.place = Some(place_in(self.file, problem.span));
            if finding.is_error() {
                // What the document means is not certain, so none of its objects is.
                self.told[from..].iter_mut().for_each(|told| told.object = None);
            }
            self.findings.push(finding);
        }
    }

    fn object(&mut self, node: &Node) {
        let name = name_of(node);
        let read = read_object::read(self.file, node, &name);
        for mut finding in read.findings {
            let span = match finding.reason {
                Reason::UnknownField => node.key_place(&finding.field),
                _ => field_span(node, &finding.field),
            };
            finding.place = Some(place_in(self.file, span));
            self.findings.push(finding.about(&name));
        }
        self.whole &= read.identified;
        if let Some(key) = read.key {
            let place = place_in(self.file, field_span(node, ""));
            self.told.push(Told { key, place, object: read.object });
        }
    }

    /// Refuses what is there twice, and sorts the rest.
    fn finish(mut self) -> Manifest {
        let mut places: BTreeMap<&ObjectKey, Vec<&Place>> = BTreeMap::new();
        for told in &self.told {
            places.entry(&told.key).or_default().push(&told.place);
        }
        let twice: BTreeMap<ObjectKey, Vec<Place>> = places
            .into_iter()
            .filter(|(_, places)| places.len() > 1)
            .map(|(key, places)| (key.clone(), places.into_iter().cloned().collect()))
            .collect();
        for (key, places) in &twice {
            for place in places {
                let lines: Vec<String> =
                    places.iter().filter(|other| *other != place).map(|other| other.line.to_string()).collect();
                let message = format!("this file has more than one {key}: also in line {}", lines.join(", "));
                let mut finding = Finding::error(Reason::Duplicate, "metadata.name", message).about(&key.object_name());
                finding.place = Some(place.clone());
                self.findings.push(finding);
            }
        }
        let mut manifest = Manifest { whole: self.whole, findings: self.findings, ..Manifest::default() };
        for Told { key, place, object } in self.told {
            match object {
                Some(object) if !twice.contains_key(&key) => manifest.objects.push(Loaded { object, place }),
                _ => {
                    manifest.refused.entry(key).or_insert(place);
                }
            }
        }
        manifest.findings.sort_by_key(|finding| finding.place.as_ref().map(|place| (place.line, place.column)));
        manifest
    }
}

/// The objects of a document: itself, or those of a list.
fn objects_in(root: &Node) -> Vec<&Node> {
    match root.get("items").map(|items| &items.value) {
        Some(Value::List(items)) if kinds::is_list(root) => items.iter().collect(),
        // A list with nothing in it speaks of nothing.
        Some(Value::Null) | None if kinds::is_list(root) => Vec::new(),
        _ => vec![root],
    }
}

/// What a document calls itself, as far as it does. An absent namespace is `default`, as for kubectl.
fn name_of(node: &Node) -> ObjectName {
    let metadata = |field| node.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Node::text);
    let kind = node.get("kind").and_then(Node::text).unwrap_or_default().to_owned();
    let namespace = match kind.as_str() {
        "Namespace" | "" => "",
        _ => metadata("namespace").unwrap_or("default"),
    };
    ObjectName { namespace: namespace.to_owned(), name: metadata("name").unwrap_or_default().to_owned(), kind }
}

/// Where a field stands. The object as a whole is pointed at by its name.
fn field_span(node: &Node, field: &str) -> Span {
    node.place(if field.is_empty() { "metadata.name" } else { field })
}

fn place_in(file: &Path, span: Span) -> Place {
    Place { file: file.to_owned(), line: span.line, column: span.column, length: span.length.max(1) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
