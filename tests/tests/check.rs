//! `switchyard check`: its exit status, what it says to people and what to programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use switchyard_tests::binary;
use switchyard_tests::manifests::{Manifests, canary};
use switchyard_tests::process::output;

fn instance(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Exit status and standard output.
fn check(args: &[&str]) -> (i32, String) {
    let done = output("switchyard", &[&["check"], args].concat());
    (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
}

fn good() -> Manifests {
    Manifests::canary(&[("v1", instance(9001)), ("v2", instance(9002))], 20, 80)
}

#[test]
fn what_is_right_passes_and_is_summed_up() {
    let manifests = good();
    let (status, said) = check(&[manifests.path().to_str().unwrap()]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("2 files"), "{said}");
}

#[test]
fn an_error_is_shown_with_file_line_column_and_field_and_fails() {
    let manifests = good();
    manifests.write("canary.yaml", &canary(20, 80).replace("weight: 80", "weight: 1000001"));
    let (status, said) = check(&[manifests.path().to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(said.contains("spec.destinations[1].weight: 1000001 is above 1000000"), "{said}");
    assert!(said.contains("canary.yaml:10:"), "{said}");
    assert!(said.contains("^^^^^^^"), "the offending text is underlined:\n{said}");
    assert!(!said.contains('\u{1b}'), "no colours where there is no terminal");
}

#[test]
fn programs_get_json() {
    let manifests = good();
    manifests.write("canary.yaml", &canary(20, 80).replace("weight: 80", "wieght: 80"));
    let (status, said) = check(&["--output", "json", manifests.path().to_str().unwrap()]);
    assert_eq!(status, 1);
    let findings: Value = serde_json::from_str(&said).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|f| f["reason"] == "UnknownField").unwrap();
    for (field, value) in [
        ("severity", "error"),
        ("kind", "RouteRule"),
        ("namespace", "shop"),
        ("name", "canary-deployment"),
        ("field", "spec.destinations[1].wieght"),
    ] {
        assert_eq!(finding[field], value, "{finding}");
    }
    assert_eq!(finding["line"], 10, "{finding}");
    assert!(finding["file"].as_str().unwrap().ends_with("canary.yaml"));
    let manifests = good();
    let (status, said) = check(&["--output", "json", manifests.path().to_str().unwrap()]);
    assert_eq!((status, said.trim()), (0, "[]"));
}

#[test]
fn a_warning_fails_only_when_strict() {
    let manifests = good();
    manifests.write("canary.yaml", &canary(20, 80).replace("version: v2, weight", "version: v3, weight"));
    let folder = manifests.path().to_str().unwrap();
    let (status, said) = check(&[folder]);
    assert_eq!(status, 0);
    assert!(said.contains("v3"), "a version that nobody runs: {said}");
    assert_eq!(check(&["--strict", folder]).0, 1);
}

#[test]
fn a_bare_on_is_said_to_be_something_else_to_kubectl() {
    let manifests = good();
    let stickiness =
        |on: &str| canary(20, 80).trim_end().to_owned() + &format!("\n  stickiness: {{{on}: {{header: x-user-id}}}}\n");
    manifests.write("canary.yaml", &stickiness("on"));
    let (status, said) = check(&[manifests.path().to_str().unwrap()]);
    assert!(status == 0 && said.contains("write it in quotes: \"on\""), "{said}");
    manifests.write("canary.yaml", &stickiness("\"on\""));
    assert_eq!(check(&["--strict", manifests.path().to_str().unwrap()]).0, 0);
}

#[test]
fn what_cannot_be_looked_at_is_neither_right_nor_wrong() {
    assert_eq!(check(&["/nowhere/at/all"]).0, 2);
    assert_eq!(check(&[]).0, 2);
}

/// `switchyard check` with a text on standard input.
fn checked(args: &[&str], input: &str) -> std::process::Output {
    let mut command = Command::new(binary("switchyard"));
    command.arg("check").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut checking = command.spawn().unwrap();
    checking.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    checking.wait_with_output().unwrap()
}

#[test]
fn standard_input_is_a_file_like_any_other() {
    let done = checked(&["-"], &canary(0, 0));
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stdout).contains("spec.destinations"));
}

#[test]
fn what_comes_up_between_objects_of_standard_input_is_underlined_too() {
    let text = canary(20, 80).replace("service: my-service\n", "service: my-servce\n");
    let done = checked(&["-"], &text);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(said.contains("<stdin>:5:12\n  |\n5 |   service: my-servce\n  |            ^^^^^^^^^"), "{said}");
    let done = checked(&["-", "--output", "json"], &text);
    let findings: Value = serde_json::from_slice(&done.stdout).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|f| f["field"] == "spec.service").unwrap();
    assert_eq!((finding["line"].as_u64(), finding["length"].as_u64()), (Some(5), Some(9)), "{finding}");
}

#[test]
fn nothing_to_look_at_is_not_nothing_wrong() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(check(&[empty.path().to_str().unwrap()]).0, 2);
    assert_eq!(checked(&["-"], "").status.code(), Some(2));
    let manifests = Manifests::default();
    manifests.write("comment.yaml", "# nothing yet\n");
    assert_eq!(check(&[manifests.path().to_str().unwrap()]).0, 2);
}

#[test]
fn the_name_of_a_file_cannot_move_the_cursor() {
    let manifests = good();
    manifests.write("a\u{1b}[2J.yaml", "kind: [");
    let (status, said) = check(&[manifests.path().to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(!said.contains('\u{1b}') && said.contains("a\\u{1b}[2J.yaml"), "{said}");
}
