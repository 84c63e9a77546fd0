//! The corpus of the fuzz target `matcher`, through the same function.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../fuzz/src/matcher.rs"]
mod matcher;

#[test]
fn the_matchers_corpus_finds_nothing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/matcher");
    let (mut requests, mut rules) = (0, 0);
    for file in std::fs::read_dir(folder).unwrap() {
        let (asked, entries) = matcher::run(&std::fs::read(file.unwrap().path()).unwrap());
        requests += asked;
        rules += entries;
    }
    assert!(requests > 100 && rules > 200, "{requests} requests to {rules} rules were read");
}
