//! `switchyard demo`, as somebody sees it who has just cloned the repository, but without a terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use switchyard_tests::process::output;

#[test]
fn the_demo_keeps_what_it_claims_and_leaves_a_folder_to_go_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("demo");
    let done = output("switchyard", &["demo", "--dir", folder.to_str().unwrap()]);
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(!said.contains('\u{1b}'), "plain lines where there is no terminal:\n{said}");
    for word in ["v2 5 %", "v2 20 %", "v2 50 %", "taken out", "callers saw 0 errors", "switchyard run --manifests"] {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    let checked = output("switchyard", &["check", folder.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
