use std::fmt::Write;

use expect_test::{Expect, expect};

use super::*;

/// What a file says, as text: objects, refused ones, findings as people see them.
fn check(text: &str, expected: Expect) {
    let manifest = read(Path::new("a.yaml"), text);
    let mut out = String::new();
    for loaded in &manifest.objects {
        writeln!(out, "{} at {}:{}", loaded.object.key(), loaded.place.line, loaded.place.column).unwrap();
    }
    for key in manifest.refused.keys() {
        writeln!(out, "refused: {key}").unwrap();
    }
    if !manifest.whole {
        writeln!(out, "not whole").unwrap();
    }
    for finding in &manifest.findings {
        let line = finding.place.as_ref().and_then(|place| text.lines().nth(place.line.checked_sub(1)?));
        out.push_str(&switchyard_crds::render::render(finding, line, false));
    }
    expected.assert_eq(&out);
}

const CANARY: &str = "\
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {name: canary-deployment, namespace: shop}
spec:
  service: my-service
  matches:
  - headers: [{name: x-version, value: v2}]
  destinations:
  - {service: my-service, version: v2, weight: 20}
  - {service: my-service, version: v1, weight: 80}
";

#[test]
fn the_canary_of_the_mission_is_in_order() {
    check(
        CANARY,
        expect![["
        RouteRule shop/canary-deployment at 3:18
    "]],
    );
}

#[test]
fn a_wrong_value_is_underlined_and_its_object_refused() {
    check(
        &CANARY.replace("weight: 80", "weight: 1000001").replace("version: v2, weight", "version: 2, wieght"),
        expect![[r#"
            refused: RouteRule shop/canary-deployment
            error[Invalid]: RouteRule shop/canary-deployment: spec.destinations[0].version: is a number, must be text; write it in quotes
             --> a.yaml:9:36
              |
            9 |   - {service: my-service, version: 2, wieght: 20}
              |                                    ^
            error[UnknownField]: RouteRule shop/canary-deployment: spec.destinations[0].wieght: no such field; did you mean `weight`?
             --> a.yaml:9:39
              |
            9 |   - {service: my-service, version: 2, wieght: 20}
              |                                       ^^^^^^
            error[Invalid]: RouteRule shop/canary-deployment: spec.destinations[1].weight: 1000001 is above 1000000
              --> a.yaml:10:48
               |
            10 |   - {service: my-service, version: v1, weight: 1000001}
               |                                                ^^^^^^^
        "#]],
    );
}

#[test]
fn kubernetes_objects_are_read_and_their_unknown_fields_are_warnings() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {a: b}}
---
apiVersion: v1
kind: Service
metadata: {name: my-service, namespace: shop}
spec:
  selector: {app: x}
  ports: [{name: http, port: 80, targetPort: 8080, colour: red}, {name: web, port: 8000, targetPort: web}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: shop, labels: {kubernetes.io/service-name: my-service, version: v1}}
addressType: IPv4
ports: [{name: http, port: 9001}]
endpoints:
- addresses: [127.0.0.1]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: p}
- addresses: [127.0.0.2]
  conditions: {ready: false, terminating: true}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {version: v1}}
spec: {containers: [{name: c, image: i}]}
";
    check(
        text,
        expect![[r#"
        Namespace shop at 3:18
        Service shop/my-service at 7:18
        EndpointSlice shop/a at 14:18
        Pod default/p at 26:18
        warning[UnknownField]: Service shop/my-service: spec.ports[0].colour: Kubernetes has no such field that this build knows; it is ignored
          --> a.yaml:10:52
           |
        10 |   ports: [{name: http, port: 80, targetPort: 8080, colour: red}, {name: web, port: 8000, targetPort: web}]
           |                                                    ^^^^^^
    "#]],
    );
    let manifest = read(Path::new("a.yaml"), text);
    let Object::EndpointSlice(slice) = &manifest.objects[2].object else { unreachable!() };
    assert_eq!(slice.service.as_deref(), Some("my-service"));
    assert_eq!(slice.ports, [("http".to_owned(), 9001)]);
    let seen: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.terminating, e.pod.as_deref())).collect();
    assert_eq!(seen, [(true, false, Some("p")), (false, true, None)]);
}

#[test]
fn wrong_types_and_addresses_of_kubernetes_objects_are_errors() {
    check(
        "\
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {ports: [{port: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: t}
spec: {ports: [{port: 70000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a}
addressType: IPv4
endpoints: [{addresses: [example.org]}, {addresses: ['::1']}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b}
addressType: FQDN
endpoints: [{addresses: [example.org]}]
",
        expect![[r#"
            EndpointSlice default/b at 19:18
            refused: Service default/s
            refused: Service default/t
            refused: EndpointSlice default/a
            error[Invalid]: Service default/s: spec.ports[0].port: is text, must be a whole number
             --> a.yaml:4:23
              |
            4 | spec: {ports: [{port: http}]}
              |                       ^^^^
            error[Invalid]: Service default/t: spec.ports[0].port: 70000 is not a port: from 1 to 65535
             --> a.yaml:9:23
              |
            9 | spec: {ports: [{port: 70000}]}
              |                       ^^^^^
            warning[Suspicious]: EndpointSlice default/a: metadata.labels: there is no label kubernetes.io/service-name, so these endpoints are no Service's
              --> a.yaml:13:11
               |
            13 | metadata: {name: a}
               |           ^^^^^^^^^
            error[Invalid]: EndpointSlice default/a: endpoints[0].addresses[0]: "example.org" is not an IPv4 address
              --> a.yaml:15:26
               |
            15 | endpoints: [{addresses: [example.org]}, {addresses: ['::1']}]
               |                          ^^^^^^^^^^^
            error[Invalid]: EndpointSlice default/a: endpoints[1].addresses[0]: "::1" is not an IPv4 address
              --> a.yaml:15:54
               |
            15 | endpoints: [{addresses: [example.org]}, {addresses: ['::1']}]
               |                                                      ^^^^^
            warning[Suspicious]: EndpointSlice default/b: metadata.labels: there is no label kubernetes.io/service-name, so these endpoints are no Service's
              --> a.yaml:19:11
               |
            19 | metadata: {name: b}
               |           ^^^^^^^^^
            warning[NotEnforced]: EndpointSlice default/b: addressType: names are accepted, but this build does not resolve them yet: the slice counts as empty
              --> a.yaml:20:14
               |
            20 | addressType: FQDN
               |              ^^^^
        "#]],
    );
}

#[test]
fn two_documents_with_one_name_are_both_refused() {
    check(
        &format!("{CANARY}---\n{CANARY}"),
        expect![[r#"
        refused: RouteRule shop/canary-deployment
        error[Duplicate]: RouteRule shop/canary-deployment: metadata.name: this file has more than one RouteRule shop/canary-deployment: also in line 14
         --> a.yaml:3:18
          |
        3 | metadata: {name: canary-deployment, namespace: shop}
          |                  ^^^^^^^^^^^^^^^^^
        error[Duplicate]: RouteRule shop/canary-deployment: metadata.name: this file has more than one RouteRule shop/canary-deployment: also in line 3
          --> a.yaml:14:18
           |
        14 | metadata: {name: canary-deployment, namespace: shop}
           |                  ^^^^^^^^^^^^^^^^^
    "#]],
    );
}

#[test]
fn a_file_that_is_no_yaml_tells_nothing_and_is_not_whole() {
    check(
        &format!("{CANARY}---\nkind: [RouteRule\nspec:\n"),
        expect![[r#"
        not whole
        error[Syntax]: this is not YAML: illegal placement of ':' indicator
          --> a.yaml:13:5
           |
        13 | spec:
           |     ^
    "#]],
    );
}

#[test]
fn a_document_that_cannot_be_identified_makes_the_file_not_whole() {
    for text in [
        "just text",
        "- a",
        "kind: RouteRule",
        "apiVersion: v1\nkind: Service\nmetadata: {}",
        "apiVersion: switchyard.dev/v1alpha1\nkind: Rule\n",
    ] {
        let manifest = read(Path::new("a.yaml"), &format!("{CANARY}---\n{text}\n"));
        assert!(!manifest.whole && manifest.objects.len() == 1 && manifest.findings.len() == 1, "{text}: {manifest:?}");
    }
}

#[test]
fn a_key_that_is_there_twice_refuses_its_document_only() {
    check(
        &format!(
            "{CANARY}---\n{}",
            CANARY.replace("canary-deployment", "b").replace("  matches:", "  service: other\n  matches:")
        ),
        expect![[r#"
            RouteRule shop/canary-deployment at 3:18
            refused: RouteRule shop/b
            error[Syntax]: RouteRule shop/b: the key "service" is there twice, first in line 16
              --> a.yaml:17:3
               |
            17 |   service: other
               |   ^^^^^^^
        "#]],
    );
}

#[test]
fn kinds_of_others_are_skipped_with_a_note_and_wrong_versions_are_errors() {
    check(
        "\
apiVersion: batch/v1
kind: Job
metadata: {name: web}
---
apiVersion: switchyard.dev/v1
kind: RouteRule
metadata: {name: r}
---
apiVersion: switchyard.dev/v1alpha1
kind: RouteRules
metadata: {name: r}
",
        expect![[r#"
            refused: RouteRule default/r
            not whole
            warning[UnknownKind]: Job default/web: kind: Job (batch/v1) is not for switchyard; skipped
             --> a.yaml:2:7
              |
            2 | kind: Job
              |       ^^^
            error[Invalid]: RouteRule default/r: apiVersion: "switchyard.dev/v1" is not read; for RouteRule it must be switchyard.dev/v1alpha1
             --> a.yaml:5:13
              |
            5 | apiVersion: switchyard.dev/v1
              |             ^^^^^^^^^^^^^^^^^
            error[UnknownKind]: RouteRules default/r: kind: there is no kind "RouteRules" in switchyard.dev; did you mean RouteRule?
              --> a.yaml:10:7
               |
            10 | kind: RouteRules
               |       ^^^^^^^^^^
        "#]],
    );
}

#[test]
fn lists_are_taken_apart() {
    let items: String =
        CANARY.lines().enumerate().map(|(i, l)| format!("{}{l}\n", if i == 0 { "- " } else { "  " })).collect();
    check(
        &format!("apiVersion: v1\nkind: List\nitems:\n{}", items.replace("weight: 80", "weight: -1")),
        expect![[r#"
        refused: RouteRule shop/canary-deployment
        error[Invalid]: RouteRule shop/canary-deployment: spec.destinations[1].weight: -1 is below 0
          --> a.yaml:13:50
           |
        13 |     - {service: my-service, version: v1, weight: -1}
           |                                                  ^^
    "#]],
    );
}

#[test]
fn a_field_of_an_object_is_found_again() {
    let name = ObjectName { kind: "RouteRule".into(), namespace: "shop".into(), name: "canary-deployment".into() };
    let places = Places::of_file(Path::new("a.yaml"), CANARY);
    let place = places.field(&name, "spec.destinations[1].version").unwrap();
    assert_eq!((place.line, place.column, place.length), (10, 36, 2));
}

#[test]
fn names_of_kubernetes_objects_are_spelt_as_the_api_server_asks() {
    check(
        "\
apiVersion: v1
kind: Service
metadata: {name: my.service, namespace: Shop, labels: {app: not ok}}
---
apiVersion: v1
kind: Service
metadata: {name: 1st-is-fine, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web.0, namespace: a.b}
---
apiVersion: v1
kind: Pod
metadata: {name: web/0}
---
apiVersion: v1
kind: Namespace
metadata: {name: a.b}
",
        expect![[r#"
            Service shop/1st-is-fine at 7:18
            refused: Namespace a.b
            refused: Service Shop/my.service
            refused: Pod a.b/web.0
            refused: Pod default/web/0
            error[Invalid]: Service Shop/my.service: metadata.name: "my.service" is not a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit
             --> a.yaml:3:18
              |
            3 | metadata: {name: my.service, namespace: Shop, labels: {app: not ok}}
              |                  ^^^^^^^^^^
            error[Invalid]: Service Shop/my.service: metadata.namespace: "Shop" is not a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit
             --> a.yaml:3:41
              |
            3 | metadata: {name: my.service, namespace: Shop, labels: {app: not ok}}
              |                                         ^^^^
            error[Invalid]: Service Shop/my.service: metadata.labels[app]: "not ok" is not a label's value: up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends
             --> a.yaml:3:61
              |
            3 | metadata: {name: my.service, namespace: Shop, labels: {app: not ok}}
              |                                                             ^^^^^^
            error[Invalid]: Pod a.b/web.0: metadata.namespace: "a.b" is not a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit
              --> a.yaml:11:36
               |
            11 | metadata: {name: web.0, namespace: a.b}
               |                                    ^^^
            error[Invalid]: Pod default/web/0: metadata.name: "web/0" is not a name of lower-case letters, digits, `-` and `.`, whose parts begin and end with a letter or digit
              --> a.yaml:15:18
               |
            15 | metadata: {name: web/0}
               |                  ^^^^^
            error[Invalid]: Namespace a.b: metadata.name: "a.b" is not a name of lower-case letters, digits and `-`, that begins and ends with a letter or digit
              --> a.yaml:19:18
               |
            19 | metadata: {name: a.b}
               |                  ^^^
        "#]],
    );
}

#[test]
fn wrong_types_are_told_in_one_way_and_underlined_whatever_the_key() {
    check(
        "\
apiVersion: v1
kind: Service
metadata: {name: s, labels: {app.kubernetes.io/version: 2}}
---
apiVersion: v1
kind: Service
metadata: {name: t}
spec: {ports: {port: 80}, selector: {a.b/c: [x]}}
---
apiVersion: v1
kind: Service
metadata: {name: u}
spec: {ports: [http]}
---
apiVersion: v1
kind: Service
metadata: {name: v}
spec: {ports: [{port: 80.0}, {port: 99999999999}]}
---
apiVersion: v1
kind: Service
metadata: {name: w}
spec: {ports: [{port: 8e1, targetPort: [1]}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [127.0.0.1], conditions: {ready: ready}}]
",
        expect![[r#"
            refused: Service default/s
            refused: Service default/t
            refused: Service default/u
            refused: Service default/v
            refused: Service default/w
            refused: EndpointSlice default/a
            error[Invalid]: Service default/s: metadata.labels[app.kubernetes.io/version]: is a number, must be text
             --> a.yaml:3:57
              |
            3 | metadata: {name: s, labels: {app.kubernetes.io/version: 2}}
              |                                                         ^
            error[Invalid]: Service default/t: spec.ports: is a mapping, must be a list
             --> a.yaml:8:15
              |
            8 | spec: {ports: {port: 80}, selector: {a.b/c: [x]}}
              |               ^^^^^^^^^^
            error[Invalid]: Service default/u: spec.ports[0]: is text, must be a mapping
              --> a.yaml:13:16
               |
            13 | spec: {ports: [http]}
               |                ^^^^
            error[Invalid]: Service default/v: spec.ports[1].port: 99999999999 is too large
              --> a.yaml:18:37
               |
            18 | spec: {ports: [{port: 80.0}, {port: 99999999999}]}
               |                                     ^^^^^^^^^^^
            error[Invalid]: Service default/w: spec.ports[0].targetPort: is a list, must be a whole number or text
              --> a.yaml:23:40
               |
            23 | spec: {ports: [{port: 8e1, targetPort: [1]}]}
               |                                        ^^^
            error[Invalid]: EndpointSlice default/a: endpoints[0].conditions.ready: is text, must be true or false
              --> a.yaml:29:58
               |
            29 | endpoints: [{addresses: [127.0.0.1], conditions: {ready: ready}}]
               |                                                          ^^^^^
        "#]],
    );
}

#[test]
fn a_list_whose_items_are_none_is_an_error() {
    check(
        "apiVersion: v1\nkind: List\nitems: {}\n",
        expect![[r#"
        not whole
        error[Invalid]: List: items: is a mapping, must be a list
         --> a.yaml:3:8
          |
        3 | items: {}
          |        ^^
    "#]],
    );
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: []}\n",
        expect![[r#"
        not whole
        error[Invalid]: List: kind: a list inside of a list is not taken apart: put its items beside the others
         --> a.yaml:4:26
          |
        4 | - {apiVersion: v1, kind: List, items: []}
          |                          ^^^^
    "#]],
    );
    check("apiVersion: v1\nkind: List\nitems: []\n", expect![[""]]);
}

#[test]
fn what_is_wrong_at_the_end_of_a_file_is_shown_inside_of_it() {
    for (text, line, column) in [
        ("spec: {a: [1,\n", 1, 11),
        ("kind: Service\nmetadata: {name: a\n\n\n", 2, 11),
        ("a: \"x\nb: c\n", 1, 4),
        ("{\"kind\": {\"name\": \"x\"}", 1, 1),
        ("a: b\n\u{7}c: d\n", 2, 1),
        ("a: \"b\u{1b}[2J\"\n", 1, 6),
    ] {
        let place = read(Path::new("a.yaml"), text).findings[0].place.clone().unwrap();
        assert_eq!((place.line, place.column), (line, column), "{text:?}");
    }
}
