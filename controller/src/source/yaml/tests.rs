use proptest::prelude::*;
use serde_json::json;

use super::*;

fn one(text: &str) -> Document {
    let mut documents = documents(text).unwrap();
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn json(text: &str) -> serde_json::Value {
    one(text).root.to_json()
}

/// The text at the place of a field.
fn at(text: &str, span: Span) -> &str {
    let line = text.lines().nth(span.line - 1).unwrap();
    let from = line.char_indices().nth(span.column - 1).map_or(line.len(), |(i, _)| i);
    let to = line.char_indices().nth(span.column - 1 + span.length).map_or(line.len(), |(i, _)| i);
    &line[from..to]
}

const RULE: &str = r#"
metadata:
  name: "日本 canary"
spec:
  destinations:
  - service: my-service
    weight: 20
  - {service: other, weight: 1000001}
  matches:
  - headers: [{name: a}, {name: b}]
    body: |
      text
  empty:
  labels:
    app.kubernetes.io/name: x
"#;

#[test]
fn a_field_is_found_where_it_stands() {
    let root = one(RULE).root;
    for (field, text) in [
        ("metadata.name", "\"日本 canary\""),
        ("spec", "spec"),
        ("spec.destinations", "destinations"),
        ("spec.destinations[0]", "service"),
        ("spec.destinations[0].weight", "20"),
        ("spec.destinations[1].weight", "1000001"),
        ("spec.destinations[1]", "{service: other, weight: 1000001}"),
        ("spec.matches[0].headers", "[{name: a}, {name: b}]"),
        ("spec.matches[0].headers[1].name", "b"),
        ("spec.empty", "empty"),
        ("spec.labels[app.kubernetes.io/name]", "x"),
        // Nothing there: what is around it.
        ("spec.destinations[0].version", "service"),
        ("spec.destinations[7].weight", "destinations"),
        ("spec.timeouts.request", "spec"),
        ("", "metadata"),
    ] {
        assert_eq!(at(RULE, root.place(field)), text, "{field}");
    }
    assert_eq!(at(RULE, root.key_place("spec.destinations[1].weight")), "weight");
}

#[test]
fn documents_are_told_apart_and_empty_ones_are_null() {
    let all = documents("a: 1\n---\n# nothing\n---\n- b\n...\n").unwrap();
    let values: Vec<_> = all.iter().map(|d| d.root.to_json()).collect();
    assert_eq!(values, [json!({"a": 1}), json!(null), json!(["b"])]);
    assert_eq!(documents("").unwrap(), []);
    assert_eq!(documents("# only this\n").unwrap(), []);
}

#[test]
fn a_tab_between_a_key_and_its_value_is_white_space() {
    assert_eq!(
        json("a:\tb\nc: {d:\te, f: \tg}\nh:\t\"x:\ty\"\n"),
        json!({"a": "b", "c": {"d": "e", "f": "g"}, "h": "x:\ty"})
    );
    let text = "a: |\n  b:\tc\nd:\te\n";
    assert_eq!(json(text), json!({"a": "b:\tc\n", "d": "e"}));
}

#[test]
fn a_tab_that_indents_is_shown_where_it_stands() {
    for (text, line) in [
        ("spec:\n  service: web\n\tpriority: 1\n", 3),
        ("spec:\n  list:\n  - a: b\n\tc: d\n", 4),
        ("spec:\n\tservice: web\n", 2),
        ("a:\n  - b\n \t- c\n", 3),
    ] {
        let broken = documents(text).unwrap_err();
        assert_eq!((broken.span.line, at(text, broken.span)), (line, "\t"), "{broken}");
    }
}

#[test]
fn json_files_are_yaml() {
    let text = "{\"a\": [1, 2.5, \"x\\u00e9\\n\", null, true],\n\t\"b\": {\"c\": \"d\"}}";
    assert_eq!(json(text), json!({"a": [1, 2.5, "x\u{e9}\n", null, true], "b": {"c": "d"}}));
}

#[test]
fn quotes_and_tags_make_text() {
    assert_eq!(json("a: \"1\"\nb: 'no'\nc: !!str 5\nd: |\n  x\n"), json!({"a": "1", "b": "no", "c": "5", "d": "x\n"}));
    assert_eq!(one("a: !thing 5").problems.len(), 1);
    assert_eq!(one("a: !!binary aGk=").problems.len(), 1);
}

#[test]
fn a_key_that_is_there_twice_is_a_problem_and_the_first_holds() {
    let document = one("a: 1\nb: 2\na: 3\n");
    assert_eq!(document.root.to_json(), json!({"a": 1, "b": 2}));
    assert_eq!(document.problems[0].message, "the key \"a\" is there twice, first in line 1");
    assert_eq!(document.problems[0].span, Span { line: 3, column: 1, length: 1 });
    assert!(documents("{a: 1}\n---\n{a: 2}\n").unwrap().iter().all(|d| d.problems.is_empty()));
}

#[test]
fn a_key_that_kubectl_reads_as_a_boolean_is_a_warning() {
    let document = one("on: {header: x}\n\"on\": 1\n");
    assert_eq!(document.problems[0].severity, Severity::Warning);
    assert_eq!(document.problems[0].message, "kubectl reads the key on as true; write it in quotes: \"on\"");
}

#[test]
fn aliases_and_merges_are_put_in() {
    let text = "base: &b {x: 1, y: 2}\nother: &o {z: 3}\nuse:\n  <<: [*b, *o]\n  y: 9\nsame: *b\n";
    let expected = json!({
        "base": {"x": 1, "y": 2}, "other": {"z": 3}, "use": {"y": 9, "x": 1, "z": 3}, "same": {"x": 1, "y": 2},
    });
    assert_eq!(json(text), expected);
    assert_eq!(one("a: &x 1\nb: {<<: *x}").problems[0].message, "`<<` merges mappings, and this is none");
}

#[test]
fn aliases_that_multiply_end_at_the_bound() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(documents(&text).unwrap_err().message.contains("more than 1000000 values"));
    assert!(documents("a: &a [*a]").unwrap_err().message.contains("inside of what it stands for"));
}

#[test]
fn nesting_ends_at_the_bound() {
    let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(documents(&nested(MAX_DEPTH)).is_ok());
    assert!(documents(&nested(MAX_DEPTH + 1)).unwrap_err().message.contains("deeper than 64"));
    assert!(documents(&"[".repeat(100_000)).is_err());
    let mut text = String::from("a0: &a0 [x]\n");
    for i in 1..80 {
        text.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert!(documents(&text).unwrap_err().message.contains("deeper than 64"));
}

#[test]
fn what_is_not_yaml_says_where() {
    let broken = documents("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
    assert!(broken.span.line >= 2 && broken.message.starts_with("this is not YAML: "), "{broken}");
    let broken = documents("a:\n\t- b\n").unwrap_err();
    assert_eq!(broken.span.line, 2, "{broken}");
}

#[test]
fn a_key_that_is_no_text_is_a_problem() {
    assert_eq!(one("? [a]\n: b\nc: d\n").root.to_json(), json!({"c": "d"}));
    assert_eq!(one("? [a]\n: b\n").problems[0].message, "a key must be a word or a text");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[-a-c:{}\\[\\],&*!|>'\"#? \n\t0-9~%@`<é\u{feff}]{0,60}") {
        for document in documents(&text).into_iter().flatten() {
            let span = document.root.place("a[0].b");
            prop_assert!(span.line >= 1 && span.column >= 1);
        }
    }

    #[test]
    fn json_reads_back_as_it_was(value in any_json()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        prop_assert_eq!(json(&text), value.clone());
        prop_assert_eq!(json(&switchyard_crds::schema::yaml::write(&value)), value);
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        "[ -~é\n]{0,8}".prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| json!(items)),
            prop::collection::btree_map("[ -~]{1,6}", inner, 0..4).prop_map(|fields| json!(fields)),
        ]
    })
}
