//! `switchyard explain`: what it says must be what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::Value;
use switchyard_tests::process::{example, output};

fn explain(args: &[&str]) -> (i32, String) {
    let folder = example("canary");
    let done = output("switchyard", &[&["explain", "--manifests", folder.to_str().unwrap()], args].concat());
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (done.status.code().unwrap(), said)
}

fn as_json(args: &[&str]) -> Value {
    let (status, said) = explain(&[args, &["--output", "json"]].concat());
    assert_eq!(status, 0, "{said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn the_rule_that_matches_and_where_it_leads() {
    let json = as_json(&["-H", "x-version: v2", "http://my-service.shop/cart"]);
    assert_eq!(json["service"], "shop/my-service");
    assert_eq!(json["rule"], "shop/canary-deployment");
    let destinations: Vec<_> = json["destinations"].as_array().unwrap().iter().collect();
    let weights: Vec<_> =
        destinations.iter().map(|d| (d["version"].as_str().unwrap(), d["weight"].as_u64().unwrap())).collect();
    assert_eq!(weights, [("v2", 20), ("v1", 80)]);
    assert!(destinations[0].to_string().contains("127.0.0.1:9002"), "its instances: {}", destinations[0]);
}

#[test]
fn a_rule_that_does_not_match_and_why() {
    let json = as_json(&["-H", "x-version: v1", "http://my-service.shop/cart"]);
    assert_eq!(json["rule"], Value::Null);
    let considered = &json["considered"][0];
    assert_eq!((&considered["rule"], &considered["matched"]), (&"shop/canary-deployment".into(), &false.into()));
    let why = considered["why"].as_str().unwrap();
    assert!(why.contains("x-version"), "{why}");
    let (status, said) = explain(&["http://my-service.shop/cart"]);
    assert_eq!(status, 0);
    assert!(said.contains("canary-deployment") && said.contains("x-version"), "{said}");
}

#[test]
fn a_host_that_names_no_service_is_said_to() {
    let (status, said) = explain(&["http://nobody.shop/"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("nobody"), "{said}");
}
