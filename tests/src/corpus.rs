//! The corpus, `tests/corpus`: objects that must be refused, each with the field that must be named, and objects that must be taken.

use std::path::{Path, PathBuf};

use crate::binaries::repository;

/// An object that must be refused.
#[derive(Clone, Debug)]
pub struct Invalid {
    /// Its name; no other of its kind has it.
    pub name: String,
    /// The field that is to be named.
    pub field: String,
    /// The document.
    pub yaml: String,
}

/// The files of objects that must be refused.
pub fn invalid_files() -> Vec<PathBuf> {
    ["routerules", "circuitpolicies", "retrypolicies"].map(|kind| folder().join(format!("invalid/{kind}.yaml"))).into()
}

/// The objects of such a file, in its order.
///
/// # Panics
/// When a document does not say which field is to be named.
pub fn invalid(file: &Path) -> Vec<Invalid> {
    let text = std::fs::read_to_string(file).unwrap();
    let documents = text.split("\n---\n").skip(1);
    documents.map(|yaml| read(yaml).unwrap_or_else(|| panic!("no `# field: ...`: {yaml}"))).collect()
}

fn read(yaml: &str) -> Option<Invalid> {
    let after = |begin: &str| yaml.lines().find_map(|line| line.strip_prefix(begin)).map(str::to_owned);
    let field = after("# field: ")?;
    let name = after("metadata: {name: ")?.split(',').next()?.to_owned();
    Some(Invalid { name, field, yaml: format!("{yaml}\n") })
}

/// The files of objects that must be taken, the examples among them.
pub fn valid_files() -> Vec<PathBuf> {
    let examples =
        ["canary/canary-deployment.yaml", "circuit/circuit.yaml", "retry/retry.yaml", "ab-test/ab-test.yaml"];
    let examples = examples.map(|file| repository().join("examples").join(file));
    [folder().join("valid.yaml")].into_iter().chain(examples).collect()
}

/// A field's path, however it is written: `a[0].b[x]` and `a[0].b.x` are the same.
pub fn path(field: &str) -> String {
    field.replace('[', ".").replace(']', "")
}

fn folder() -> PathBuf {
    repository().join("tests/corpus")
}
