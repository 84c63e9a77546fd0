//! The corpus of the fuzz targets, run as a test: what has once been found stays found, with no fuzzer at hand.

use std::path::Path;

#[path = "../../../fuzz/src/expressions.rs"]
mod expressions;
#[path = "../../../fuzz/src/manifests.rs"]
mod manifests;

fn run(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut seen = 0;
    for file in files {
        body(&std::fs::read(&file).unwrap());
        seen += 1;
    }
    assert!(seen > 0, "there is a corpus of {target}");
}

#[test]
fn any_text_is_read_or_refused_as_manifests() {
    run("manifests", manifests::run);
}

#[test]
fn what_is_said_of_regular_expressions_is_so() {
    run("expressions", expressions::run);
}
