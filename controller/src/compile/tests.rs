#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::samples::{event, key, object, objects, world};
use crate::world::Unit;

fn encoded(compiled: &Compiled) -> (Vec<u8>, Vec<u8>) {
    (compiled.routes.encode_to_vec(), compiled.instances.encode_to_vec())
}

proptest! {
    #[test]
    fn the_order_in_which_objects_come_leaves_no_trace(
        objects in vec(object(), 0..24),
        seed in any::<u64>(),
    ) {
        let by_key: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), object)).collect();
        let in_order: Vec<_> = by_key.into_values().collect();
        let mut shuffled = in_order.clone();
        // A shuffle that the seed decides: by a hash of the position.
        shuffled.sort_by_cached_key(|object| {
            use std::hash::{Hash as _, Hasher as _};
            let mut hasher = std::hash::DefaultHasher::new();
            (seed, object.key()).hash(&mut hasher);
            hasher.finish()
        });
        let (one, other) = (world(&in_order), world(&shuffled));
        prop_assert_eq!(one.services(), other.services());
        for key in one.services() {
            let (one, other) = (service(&one, &key), service(&other, &key));
            prop_assert_eq!(encoded(&one), encoded(&other));
            prop_assert_eq!(one.findings, other.findings);
        }
    }

    #[test]
    fn a_change_dirties_every_service_that_it_alters(events in vec(event(), 1..24)) {
        let mut world = World::default();
        for event in events {
            let keys = world.services();
            let before: Vec<_> = keys.iter().map(|key| service(&world, key)).collect();
            let nodes = ["", "n1"].map(|name| (name, node(&world, name)));
            let dirty = world.apply(&event);
            for (name, before) in nodes {
                if !dirty.contains(&Unit::Node(name.to_owned())) {
                    prop_assert_eq!(before, node(&world, name), "node {:?} after {:?}", name, event);
                }
            }
            for (key, before) in keys.iter().zip(before) {
                if !dirty.contains(&Unit::Service(key.clone())) {
                    prop_assert_eq!(before, service(&world, key), "{} after {:?}", key, event);
                }
            }
            for key in world.services().difference(&keys) {
                prop_assert!(dirty.contains(&Unit::Service(key.clone())), "{} is new after {:?}", key, event);
            }
            prop_assert!(world.apply(&event).is_empty(), "the same again dirties nothing");
        }
    }
}

/// A Service of two versions, which the rules of a test are for.
const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-service, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: one, namespace: shop, labels: {kubernetes.io/service-name: my-service, version: v1}}
addressType: IPv4
ports: [{name: http, port: 9001}]
endpoints: [{addresses: [127.0.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: two, namespace: shop, labels: {kubernetes.io/service-name: my-service, version: v2}}
addressType: IPv4
ports: [{name: http, port: 9002}]
endpoints: [{addresses: [127.0.0.1]}]
";

fn compiled(rules: &str) -> Compiled {
    service(&world(&objects(&format!("{SHOP}\n---\n{rules}"))), &key("shop", "my-service"))
}

#[test]
fn a_rule_never_matches_more_than_it_says() {
    let rules = "
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {name: of-a-consumer, namespace: web}
spec:
  service: my-service
  serviceNamespace: shop
  matches:
  - source: {serviceAccount: front}
  - source: {namespace: other}
  - path: {value: /%62eta/}
  destinations: [{service: my-service, namespace: shop, version: v2}]
---
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {name: never, namespace: web}
spec:
  service: my-service
  serviceNamespace: shop
  matches: [{source: {namespace: other}}]
  destinations: [{service: my-service, namespace: shop, version: v2}]
---
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {name: everything-of-a-consumer, namespace: web}
spec:
  service: my-service
  serviceNamespace: shop
  destinations: [{service: my-service, namespace: shop, version: v2}]
";
    let compiled = compiled(rules);
    let names: Vec<_> = compiled.routes.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["web/everything-of-a-consumer", "web/of-a-consumer"]);
    let matches = &compiled.routes.matches;
    let seen = matches.iter().map(|entry| {
        let source = entry.source.as_ref().unwrap();
        let path = entry.path.as_ref().map_or("", |path| path.value.as_str());
        (entry.rule, entry.position, path, source.namespace.as_str(), source.service_account.as_str())
    });
    let seen: Vec<_> = seen.collect();
    assert_eq!(seen, [(1, 2, "/beta", "web", ""), (0, -1, "", "web", ""), (1, 0, "", "web", "front")]);
}

#[test]
fn agents_get_those_labels_of_callers_that_some_rule_asks_for() {
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: web, labels: {app: front, tier: x}}
spec: {nodeName: n1, containers: []}
status: {podIPs: [{ip: 10.0.0.9}]}
---";
    let rule = "
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {name: r, namespace: shop}
spec: {service: my-service, matches: [{source: {labels: {app: front}}}], destinations: [{service: my-service}]}
";
    let labels = |yaml: &str| node(&world(&objects(yaml)), "n1").workloads[0].labels.clone();
    assert!(labels(pod).is_empty());
    assert_eq!(labels(&[pod, rule].concat()), BTreeMap::from([("app".to_owned(), "front".to_owned())]));
}

#[test]
fn of_two_policies_for_one_target_the_oldest_holds() {
    let policy = |name: &str, created: &str, target: &str| {
        format!(
            "
apiVersion: switchyard.dev/v1alpha1
kind: CircuitPolicy
metadata: {{name: {name}, namespace: shop, creationTimestamp: {created}}}
spec: {{targetRefs: [{{name: my-service{target}}}]}}
---"
        )
    };
    let policies = [
        policy("younger", "2026-01-02T00:00:00Z", ""),
        policy("older", "2026-01-01T00:00:00Z", ""),
        policy("for-v2", "2026-01-03T00:00:00Z", ", version: v2"),
    ];
    let compiled = compiled(&policies.concat());
    let names: Vec<_> = compiled.routes.circuits.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["shop/for-v2", "shop/older"]);
    let conflicts: Vec<_> = compiled.findings.iter().filter(|f| f.reason == Reason::Conflicted).collect();
    assert_eq!(conflicts.len(), 1, "{conflicts:#?}");
    assert_eq!(conflicts[0].object.name, "younger");
    assert_eq!(conflicts[0].others, ["shop/older"]);
}

fn rule(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: {name}, namespace: shop}}
spec: {{service: my-service, {spec}, destinations: [{{service: my-service}}]}}
---"
    )
}

/// The one finding of this reason.
fn the_one(compiled: Compiled, reason: Reason) -> Finding {
    let mut found = compiled.findings.into_iter().filter(|finding| finding.reason == reason).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn of_two_rules_that_ask_the_same_the_younger_is_told_that_it_gets_nothing() {
    let both = "{headers: [{name: a, value: '1'}, {name: b, value: '2'}], path: {value: /x/}}, {path: {value: /y}}";
    let one = "{path: {value: /x}, headers: [{name: B, value: '2'}, {name: A, value: '1'}]}";
    let rules = [
        rule("first", &format!("matches: [{both}]")),
        rule("second", &format!("matches: [{one}]")),
        rule("third", "matches: [{path: {value: /z}}]"),
    ];
    let finding = the_one(compiled(&rules.concat()), Reason::Shadowed);
    assert_eq!((finding.object.name.as_str(), finding.field.as_str()), ("second", "spec.matches[0]"));
    assert_eq!(finding.others, ["shop/first"]);
    assert!(finding.message.contains("shop/first takes every one that it matches, such as GET /x with a: 1, b: 2"));
}

#[test]
fn rules_that_overlap_are_told_apart_by_all_but_their_age() {
    let header = |name: &str, more: &str| format!("{more} matches: [{{headers: [{{name: {name}, value: '1'}}]}}]");
    let two = [rule("first", &header("a", "")), rule("second", &header("b", ""))];
    let finding = the_one(compiled(&two.concat()), Reason::Conflicted);
    assert_eq!((finding.object.name.as_str(), &finding.others[..]), ("second", &["shop/first".to_owned()][..]));
    let example = finding.example.unwrap();
    assert_eq!((example.method.as_str(), example.path.as_str()), ("GET", "/"));
    assert_eq!(example.headers, [("a".into(), "1".into()), ("b".into(), "1".into())]);
    // A third rule decides, or a priority does.
    let third = rule("third", "matches: [{headers: [{name: a, value: '1'}, {name: b, value: '1'}]}]");
    let one_first = [rule("first", &header("a", "")), rule("second", &header("b", "priority: 1,"))];
    for decided in [[two.concat(), third].concat(), one_first.concat()] {
        let findings = compiled(&decided).findings;
        assert!(!findings.iter().any(|f| matches!(f.reason, Reason::Conflicted | Reason::Shadowed)), "{findings:#?}");
    }
}

#[test]
fn rules_that_hide_one_together_are_all_named() {
    let rules = [
        rule("any", "matches: [{method: GET, headers: [{name: a, type: Present}]}]"),
        rule("none", "matches: [{method: GET, headers: [{name: a, type: Absent}]}]"),
        rule("other", "priority: 3, matches: [{path: {value: /x}}]"),
        rule("hidden", "matches: [{method: GET}]"),
    ];
    let finding = the_one(compiled(&rules.concat()), Reason::Shadowed);
    assert_eq!(finding.object.name, "hidden");
    assert_eq!(finding.others, ["shop/any", "shop/none"]);
    let contradicts = "matches: [{headers: [{name: a, type: Prefix, value: x}, {name: A, type: RegularExpression, value: '[0-9]+'}]}]";
    let finding = the_one(compiled(&rule("never", contradicts)), Reason::Shadowed);
    assert!(finding.others.is_empty() && finding.message.contains("about the header a contradicts"), "{finding:#?}");
}

#[test]
fn instances_on_one_address_with_other_ports_are_several() {
    let instances = compiled("").instances.instances;
    let ports: Vec<_> = instances.iter().map(|i| (i.address.as_str(), i.ports[0].port, i.version.as_str())).collect();
    assert_eq!(ports, [("127.0.0.1", 9001, "v1"), ("127.0.0.1", 9002, "v2")]);
}

#[test]
fn an_endpoint_that_is_in_two_slices_is_one_instance() {
    let slice = |name: &str, ready: bool| {
        format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: my-service}}}}
addressType: IPv4
ports: [{{name: http, port: 80}}]
endpoints: [{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: p}}}}]
---"
        )
    };
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {version: old, app.kubernetes.io/version: v9, app: x}}
";
    let instances = compiled(&[&slice("three", false), &slice("four", true), pod].concat()).instances.instances;
    let of_pod: Vec<_> = instances.iter().filter(|instance| instance.name == "p").collect();
    assert_eq!(of_pod.len(), 1);
    assert!(of_pod[0].ready);
    assert_eq!(of_pod[0].version, "v9");
    assert!(of_pod[0].labels.is_empty(), "nobody asks for labels");
}

#[test]
fn a_pod_with_an_address_of_each_family_is_one_instance() {
    let slice = |family: &str, endpoints: &str| {
        format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {}, namespace: shop, labels: {{kubernetes.io/service-name: my-service}}}}
addressType: {family}
ports: [{{name: http, port: 80}}]
endpoints: [{endpoints}]
---",
            family.to_lowercase()
        )
    };
    let endpoint =
        |address: &str, pod: &str| format!("{{addresses: ['{address}'], targetRef: {{kind: Pod, name: {pod}}}}}");
    let v6 = [endpoint("fd00::1", "p"), endpoint("fd00::2", "q"), "{addresses: ['fd00::3']}".to_owned()].join(", ");
    let v4 = [endpoint("10.0.0.1", "p"), "{addresses: [10.0.0.3]}".to_owned()].join(", ");
    let instances = compiled(&[slice("IPv6", &v6), slice("IPv4", &v4)].concat()).instances.instances;
    let found: Vec<_> =
        instances.iter().map(|i| (i.address.as_str(), i.other_address.as_str(), i.name.as_str())).collect();
    let expected = [("10.0.0.1", "fd00::1", "p"), ("10.0.0.3", "", ""), ("fd00::2", "", "q"), ("fd00::3", "", "")];
    assert!(expected.iter().all(|one| found.contains(one)), "{found:?}");
    // And the two that the Service has anyhow.
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn a_service_is_taken_in_at_its_addresses_when_it_is_opted_in() {
    let compiled = |labels: &str, address: &str| {
        let yaml = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: my-service, namespace: shop, labels: {labels}}}
spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}
"
        );
        let objects = objects(&yaml);
        let routes = service(&world(&objects), &key("shop", "my-service")).routes;
        (routes.cluster_ips, routes.intercepted)
    };
    let enabled = "{switchyard.dev/mesh: enabled}";
    assert_eq!(compiled(enabled, "10.96.0.7"), (vec!["10.96.0.7".to_owned()], true));
    assert_eq!(compiled("{switchyard.dev/mesh: disabled}", "10.96.0.7"), (vec!["10.96.0.7".to_owned()], false));
    assert_eq!(compiled(enabled, "None"), (Vec::new(), false));
}
