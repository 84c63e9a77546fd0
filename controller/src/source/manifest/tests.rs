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
    for key in &manifest.refused {
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
            error[Invalid]: Service default/s: spec.ports[0].port: invalid type: string "http", expected i32
             --> a.yaml:4:23
              |
            4 | spec: {ports: [{port: http}]}
              |                       ^^^^
            error[Invalid]: Service default/t: spec.ports[0].port: 70000 is not a port: from 1 to 65535
             --> a.yaml:9:23
              |
            9 | spec: {ports: [{port: 70000}]}
              |                       ^^^^^
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
apiVersion: apps/v1
kind: Deployment
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
            warning[UnknownKind]: Deployment default/web: kind: Deployment (apps/v1) is not for switchyard; skipped
             --> a.yaml:2:7
              |
            2 | kind: Deployment
              |       ^^^^^^^^^^
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
