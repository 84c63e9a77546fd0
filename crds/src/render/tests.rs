use expect_test::expect;

use super::*;
use crate::findings::{ExampleRequest, ObjectName, Reason};

fn finding(line: usize, column: usize, length: usize) -> Finding {
    let object = ObjectName { kind: "RouteRule".into(), namespace: "shop".into(), name: "canary".into() };
    let place = Place { file: "shop/canary.yaml".into(), line, column, length };
    let mut finding =
        Finding::error(Reason::Invalid, "spec.destinations[1].weight", "1000001 is above 1000000").about(&object);
    finding.place = Some(place);
    finding
}

#[test]
fn the_line_is_shown_with_what_is_meant_underlined() {
    let mut finding = finding(12, 15, 7);
    finding.others = vec!["shop/other".into(), "shop/third".into()];
    finding.example = Some(ExampleRequest {
        method: "GET".into(),
        path: "/x".into(),
        headers: vec![("x-version".into(), "v2".into())],
        caller: Some("namespace web".into()),
    });
    expect![[r"
        error[Invalid]: RouteRule shop/canary: spec.destinations[1].weight: 1000001 is above 1000000
          --> shop/canary.yaml:12:15
           |
        12 |       weight: 1000001
           |               ^^^^^^^
           = also: shop/other, shop/third
           = example: GET /x with x-version: v2 from namespace web
    "]]
    .assert_eq(&render(&finding, Some("      weight: 1000001"), false));
}

#[test]
fn without_a_line_the_place_is_named_and_without_a_place_nothing() {
    let mut finding = finding(0, 0, 1);
    expect![[r"
        error[Invalid]: RouteRule shop/canary: spec.destinations[1].weight: 1000001 is above 1000000
         --> shop/canary.yaml
    "]]
    .assert_eq(&render(&finding, Some("text"), false));
    finding.place = None;
    finding.object = ObjectName::default();
    finding.field = String::new();
    finding.severity = Severity::Warning;
    expect![[r"
        warning[Invalid]: 1000001 is above 1000000
    "]]
    .assert_eq(&render(&finding, None, false));
}

#[test]
fn tabs_wide_characters_and_control_characters_keep_the_line_under_its_word() {
    expect![[r#"
        error[Invalid]: RouteRule shop/canary: spec.destinations[1].weight: 1000001 is above 1000000
         --> shop/canary.yaml:3:4
          |
        3 |     日本�x: [7]
          |         ^^^^^^
    "#]]
    .assert_eq(&render(&finding(3, 4, 6), Some("\t日本\u{1b}x: [7]"), false));
}

#[test]
fn a_long_line_is_cropped_around_what_is_meant() {
    let text = format!("a: {{{}weight: 1000001, {}}}", "x: 1, ".repeat(100), "y: 2, ".repeat(100));
    let start = text.find("1000001").unwrap_or_default() + 1;
    expect![[r#"
        error[Invalid]: RouteRule shop/canary: spec.destinations[1].weight: 1000001 is above 1000000
         --> shop/canary.yaml:1:613
          |
        1 | ..., x: 1, x: 1, x: 1, x: 1, x: 1, weight: 1000001, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2, y: 2,...
          |                                            ^^^^^^^
    "#]]
    .assert_eq(&render(&finding(1, start, 7), Some(&text), false));
}

#[test]
fn colours_are_there_when_asked_for() {
    let text = render(&finding(1, 1, 1), Some("x"), true);
    assert!(text.starts_with("\u{1b}[1;31merror[Invalid]\u{1b}[0m") && text.contains("\u{1b}[1;34m-->\u{1b}[0m"));
}
