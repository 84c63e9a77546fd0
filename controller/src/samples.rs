//! Objects for tests: read from YAML as a user writes them, and at random for property tests, from so few names that they
//! have much to do with one another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::object::{Endpoint, EndpointSlice, Kind, Object, Pod, Service, ServiceKey, ServicePort, Workload};
use crate::source::Event;
use crate::source::manifest;
use crate::world::World;

/// The objects of a YAML text that is in order.
pub(crate) fn objects(yaml: &str) -> Vec<Object> {
    let read = manifest::read(Path::new("sample.yaml"), yaml);
    let errors: Vec<_> = read.findings.iter().filter(|finding| finding.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    read.objects.into_iter().map(|loaded| loaded.object).collect()
}

/// A world of these objects.
pub(crate) fn world<'a>(objects: impl IntoIterator<Item = &'a Object>) -> World {
    let mut world = World::default();
    for object in objects {
        world.apply(&Event::Applied(object.clone()));
    }
    world
}

pub(crate) fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Any change.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    (object(), prop::bool::weighted(0.75))
        .prop_map(|(object, stays)| if stays { Event::Applied(object) } else { Event::Deleted(object.key()) })
}

/// Any object.
pub(crate) fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        2 => service(),
        3 => slice(),
        2 => pod(),
        1 => workload(),
        6 => rule(),
        2 => circuit_policy(),
        2 => retry_policy(),
    ]
}

fn name(letters: &'static str) -> impl Strategy<Value = String> {
    let names: Vec<String> = letters.chars().map(String::from).collect();
    prop::sample::select(names)
}

fn namespace() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just("shop".to_owned()), 1 => Just("web".to_owned())]
}

fn labels() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    let label = prop::sample::select(vec!["version", "app.kubernetes.io/version", "track"]);
    btree_map(label.prop_map(str::to_owned), name("12"), 0..3)
}

fn service() -> impl Strategy<Value = Object> {
    let ports = prop::sample::subsequence(vec![("http", 80), ("grpc", 81), ("tcp-db", 82)], 1..=3);
    (namespace(), name("ab"), ports, labels()).prop_map(|(namespace, name, ports, selector)| {
        let port = |(name, port): (&str, u16)| ServicePort { name: name.to_owned(), port, ..ServicePort::default() };
        let ports = ports.into_iter().map(port).collect();
        Object::Service(Service { namespace, name, ports, selector, ..Service::default() })
    })
}

fn slice() -> impl Strategy<Value = Object> {
    let ports = prop::sample::subsequence(vec![("http".to_owned(), 8080), ("grpc".to_owned(), 8081)], 1..=2);
    let endpoint = (1u8..4, any::<bool>(), any::<bool>(), option::of(name("pq")));
    let endpoint = endpoint.prop_map(|(last, ready, terminating, pod)| Endpoint {
        address: [127, 0, 0, last].into(),
        ready,
        terminating,
        pod,
        zone: None,
    });
    (namespace(), name("xyz"), option::weighted(0.9, name("ab")), labels(), ports, vec(endpoint, 0..4)).prop_map(
        |(namespace, name, service, labels, ports, endpoints)| {
            Object::EndpointSlice(EndpointSlice { namespace, name, service, labels, ports, endpoints })
        },
    )
}

fn pod() -> impl Strategy<Value = Object> {
    let node = option::of(Just("n1".to_owned()));
    (namespace(), name("pq"), labels(), node).prop_map(|(namespace, name, labels, node)| {
        let addresses = vec![[10, 0, 0, 1].into()];
        Object::Pod(Pod { namespace, name, labels, node, addresses, ..Pod::default() })
    })
}

fn workload() -> impl Strategy<Value = Object> {
    let kind = prop::sample::select(vec![Kind::Deployment, Kind::Rollout]);
    (kind, namespace(), name("pq"), labels()).prop_map(|(kind, namespace, name, pod_labels)| {
        Object::Workload(Workload { kind, namespace, name, pod_labels })
    })
}

fn metadata(namespace: &str, name: &str, day: Option<u8>) -> Value {
    let created = day.map(|day| format!("2026-01-0{day}T00:00:00Z"));
    json!({"namespace": namespace, "name": name, "creationTimestamp": created})
}

fn entry() -> impl Strategy<Value = Value> {
    let path = prop::sample::select(vec![
        Value::Null,
        json!({"type": "Exact", "value": "/a"}),
        json!({"type": "PathPrefix", "value": "/"}),
        json!({"type": "PathPrefix", "value": "/a"}),
        json!({"type": "PathPrefix", "value": "/a/"}),
        json!({"type": "PathPrefix", "value": "/a/b"}),
        json!({"type": "RegularExpression", "value": "/[a-z]+"}),
    ]);
    let named = || vec(name("xy").prop_map(|name| json!({"name": name, "value": "1"})), 0..3);
    let cookies = vec(name("cd").prop_map(|name| json!({"name": name, "value": "1"})), 0..2);
    let grpc = option::weighted(0.2, (option::of(name("ab")), option::of(name("mn"))));
    let source = option::weighted(0.3, (option::of(namespace()), labels()));
    let what = (path, option::of(Just("GET")), grpc);
    (what, named(), named(), cookies, source).prop_map(|((path, method, grpc), headers, params, cookies, source)| {
        let mut entry = json!({"method": method, "headers": headers, "queryParams": params, "cookies": cookies});
        if !path.is_null() {
            entry["path"] = path;
        }
        if let Some((service, method)) = grpc {
            entry["grpc"] = json!({"service": service, "method": method});
        }
        if let Some((namespace, labels)) = source {
            entry["source"] = json!({"namespace": namespace, "labels": labels});
        }
        entry
    })
}

fn selector() -> impl Strategy<Value = (Option<String>, Option<String>)> {
    (option::of(name("12")), option::weighted(0.3, name("12")))
}

fn selected((version, track): (Option<String>, Option<String>)) -> Value {
    let mut value = json!({});
    if let Some(version) = version {
        value["version"] = json!(version);
    }
    if let Some(track) = track {
        value["subset"] = json!({"track": track});
    }
    value
}

/// Any rule.
pub(crate) fn rule() -> impl Strategy<Value = Object> {
    let destination = (name("ab"), selector(), 0..3, mirrors()).prop_map(|(service, selector, weight, mirrors)| {
        let mut to = selected(selector);
        to["service"] = json!(service);
        to["weight"] = json!(weight);
        to["filters"] = mirrors;
        to
    });
    let meta = (namespace(), name("rstu"), option::of(1u8..4));
    let spec = (name("ab"), option::weighted(0.1, namespace()), 0..2, option::weighted(0.2, 80..84));
    let lists = (vec(entry(), 0..3), vec(destination, 0..3), option::weighted(0.3, name("mn")), mirrors());
    (meta, spec, lists).prop_map(
        |((namespace, name, day), (service, of, priority, port), (matches, to, retry, mirrors))| {
            let rule = json!({
                "apiVersion": "switchyard.dev/v1alpha1",
                "kind": "RouteRule",
                "metadata": metadata(&namespace, &name, day),
                "spec": {
                    "service": service, "serviceNamespace": of, "priority": priority, "port": port,
                    "matches": matches, "destinations": to, "retryPolicy": retry, "filters": mirrors,
                },
            });
            Object::RouteRule(serde_json::from_value(rule).unwrap())
        },
    )
}

/// Filters that copy requests to some Service.
fn mirrors() -> impl Strategy<Value = Value> {
    let mirror = name("ab").prop_map(|service| json!({"type": "RequestMirror", "requestMirror": {"service": service}}));
    vec(mirror, 0..2).prop_map(Value::Array)
}

fn targets() -> impl Strategy<Value = Vec<Value>> {
    let target = (name("ab"), selector()).prop_map(|(name, selector)| {
        let mut target = selected(selector);
        target["name"] = json!(name);
        target
    });
    vec(target, 1..3)
}

fn policy(kind: &'static str, letters: &'static str) -> impl Strategy<Value = Value> {
    (namespace(), name(letters), option::of(1u8..4), targets()).prop_map(move |(namespace, name, day, targets)| {
        json!({
            "apiVersion": "switchyard.dev/v1alpha1",
            "kind": kind,
            "metadata": metadata(&namespace, &name, day),
            "spec": {"targetRefs": targets},
        })
    })
}

fn circuit_policy() -> impl Strategy<Value = Object> {
    (policy("CircuitPolicy", "klm"), option::of((name("abc"), option::of(name("12"))))).prop_map(
        |(mut value, fallback)| {
            if let Some((service, version)) = fallback {
                value["spec"]["fallback"] = json!({"destination": {"service": service, "version": version}});
            }
            Object::CircuitPolicy(serde_json::from_value(value).unwrap())
        },
    )
}

fn retry_policy() -> impl Strategy<Value = Object> {
    policy("RetryPolicy", "mno").prop_map(|value| Object::RetryPolicy(serde_json::from_value(value).unwrap()))
}
