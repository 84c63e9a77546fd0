#![allow(clippy::unwrap_used, clippy::panic)]

use switchyard_proto::v1;

use super::*;
use crate::admit::breaker::{Answer, Moment, Outcome, State};
use crate::admit::window::Millis;
use crate::resources::tests_support::{instances, routes_of};
use crate::table::Table;

fn selector(version: &str) -> Option<v1::Selector> {
    Some(v1::Selector { version: version.into(), ..v1::Selector::default() })
}

/// A policy for a version of a Service, or for all of it.
fn policy(version: &str, fallback: Option<v1::Destination>) -> v1::CircuitPolicy {
    v1::CircuitPolicy {
        name: format!("shop/{version}"),
        target: selector(version),
        failure_threshold: 1,
        timeout_ms: 60_000,
        max_ejection_ppm: Some(500_000),
        fallback: fallback.map(|destination| v1::Fallback { destination: Some(destination), reply: None }),
        ..v1::CircuitPolicy::default()
    }
}

fn to(service: &str, version: &str, weight: u32) -> v1::Destination {
    let selector = selector(version);
    v1::Destination {
        namespace: "shop".into(),
        service: service.into(),
        selector,
        weight,
        ..v1::Destination::default()
    }
}

fn table(resources: &Resources, before: &Table, runtime: &Runtime) -> Table {
    Table::build(resources, before, runtime, None)
}

fn instances_of(table: &Table, service: usize, rule: Option<u32>, destination: usize) -> Vec<Arc<Instance>> {
    table.at(service).rule(rule).destinations[destination].ports[0].ready.clone()
}

/// Fails once; whether it is out then.
fn fails(instance: &Instance) -> bool {
    let circuit = instance.circuit.as_ref().unwrap();
    let settings = &circuit.settings.breaker;
    if let Answer::Admit(ticket) = circuit.breaker.ask(settings, Millis(0)) {
        let moment = Moment { worker: 0, now: Millis(0), random: 0 };
        circuit.breaker.record(
            settings,
            ticket,
            Outcome::Failure { slow: false },
            moment,
            circuit.ejections.as_deref(),
        );
    }
    circuit.breaker.state() != State::Closed
}

#[test]
fn the_instances_of_a_policys_target_are_one_set_whichever_way_requests_come() {
    let mut resources = Resources::default();
    let rules = vec![v1::Rule { destinations: vec![to("a", "v2", 1), to("a", "v1", 1)], ..v1::Rule::default() }];
    let circuits = vec![policy("v2", None), policy("", None)];
    resources.put(routes_of("shop", "a", v1::ServiceRoutes { rules, circuits, ..v1::ServiceRoutes::default() }));
    let all = [("10.0.0.1", 1, "v1"), ("10.0.0.2", 1, "v1"), ("10.0.0.3", 1, "v2"), ("10.0.0.4", 1, "v2")];
    resources.put(instances("shop", "a", &all));
    let runtime = Runtime::new(1);
    let first = table(&resources, &Table::default(), &runtime);
    // By default and by the rule: each policy has a set of two, of which one may be out.
    let (by_default, by_rule) = (instances_of(&first, 0, None, 0), instances_of(&first, 0, Some(0), 0));
    assert!(fails(&by_default[2]) && !fails(&by_rule[1]), "one of the two of v2");
    assert!(fails(&by_default[0]) && !fails(&by_default[1]), "and one of the others");

    // Two more of v2: now two of four may be out. Then they are gone, and one too many comes in.
    let more = [&all[..], &[("10.0.0.5", 1, "v2"), ("10.0.0.6", 1, "v2")]].concat();
    resources.put(instances("shop", "a", &more));
    let second = table(&resources, &first, &runtime);
    let v2 = instances_of(&second, 0, Some(0), 0);
    assert!(fails(&v2[1]) && !fails(&v2[2]), "the circuits are those that were there before");
    assert_eq!(runtime.take_changes().len(), 0);
    resources.put(instances("shop", "a", &all));
    let third = table(&resources, &second, &runtime);
    let out = instances_of(&third, 0, Some(0), 0);
    let out = out.iter().filter(|i| i.circuit.as_ref().unwrap().breaker.state() != State::Closed).count();
    let changes = runtime.take_changes();
    assert_eq!((out, changes.len()), (1, 1));
    assert_eq!(changes[0].1.to, State::Closed);
}

#[test]
fn a_circuit_goes_on_under_another_policy_unless_it_had_none_in_between() {
    let mut resources = Resources::default();
    let mut of = |name: &str, window_ms: u64| {
        let policy =
            v1::CircuitPolicy { name: name.into(), window_ms, max_ejection_ppm: Some(1_000_000), ..policy("", None) };
        let circuits = if name.is_empty() { Vec::new() } else { vec![policy] };
        resources.put(routes_of("shop", "a", v1::ServiceRoutes { circuits, ..v1::ServiceRoutes::default() }));
        resources.put(instances("shop", "a", &[("10.0.0.1", 1, "v1")]));
        resources.clone()
    };
    let runtime = Runtime::new(1);
    let is_out =
        |table: &Table| instances_of(table, 0, None, 0)[0].circuit.as_ref().map(|c| c.breaker.state() != State::Closed);
    let first = table(&of("shop/one", 10_000), &Table::default(), &runtime);
    assert!(fails(&instances_of(&first, 0, None, 0)[0]));
    let second = table(&of("shop/two", 10_000), &first, &runtime);
    drop(first);
    assert_eq!((is_out(&second), runtime.take_changes().len()), (Some(true), 0), "the one took over from the other");
    let without = table(&of("", 0), &second, &runtime);
    drop(second);
    assert_eq!(is_out(&without), None);
    let third = table(&of("shop/three", 10_000), &without, &runtime);
    assert_eq!((is_out(&third), runtime.take_changes().len()), (Some(false), 1), "it knows nothing of what was");
    assert!(fails(&instances_of(&third, 0, None, 0)[0]));
    let other_window = table(&of("shop/three", 20_000), &third, &runtime);
    let changes = runtime.take_changes();
    assert_eq!((is_out(&other_window), changes.len()), (Some(false), 1));
    assert_eq!(changes[0].1.to, State::Closed);
}

#[test]
fn ports_are_sets_of_their_own_unless_the_same_addresses_serve_them() {
    let port = |port, name: &str| v1::ServicePort { port, name: name.into(), protocol: v1::Protocol::Http1.into() };
    let ports = vec![port(80, "http"), port(81, "same"), port(90, "other")];
    let mut resources = Resources::default();
    let circuits = vec![policy("", None)];
    resources.put(routes_of("shop", "a", v1::ServiceRoutes { ports, circuits, ..v1::ServiceRoutes::default() }));
    let at = |service_port, port| v1::InstancePort { service_port, port };
    let instance = |address: &str| v1::Instance {
        address: address.into(),
        ports: vec![at(80, 8080), at(81, 8080), at(90, 9090)],
        ready: true,
        ..v1::Instance::default()
    };
    let mut both = instances("shop", "a", &[]);
    let content = v1::ServiceInstances { instances: vec![instance("10.0.0.1"), instance("10.0.0.2")] };
    both.content = Some(v1::resource::Content::Instances(content));
    resources.put(both);
    let table = table(&resources, &Table::default(), &Runtime::new(1));
    let on = |port: usize| table.at(0).default_rule.destinations[0].ports[port].ready.clone();
    let (http, same, other) = (on(0), on(1), on(2));
    assert!(fails(&http[0]) && !fails(&same[1]), "one set");
    assert!(fails(&other[0]) && !fails(&other[1]), "and another");
}

#[test]
fn a_fallback_stands_behind_the_rules_destinations_is_not_drawn_and_has_none_of_its_own() {
    let mut resources = Resources::default();
    let rules = vec![v1::Rule { destinations: vec![to("a", "v1", 1), to("a", "v2", 3)], ..v1::Rule::default() }];
    let circuits = vec![policy("", Some(to("b", "", 7)))];
    resources.put(routes_of("shop", "a", v1::ServiceRoutes { rules, circuits, ..v1::ServiceRoutes::default() }));
    resources.put(instances("shop", "a", &[("10.0.0.1", 1, "v1"), ("10.0.0.2", 1, "v2")]));
    let circuits = vec![policy("", Some(to("a", "", 7)))];
    resources.put(routes_of("shop", "b", v1::ServiceRoutes { circuits, ..v1::ServiceRoutes::default() }));
    resources.put(instances("shop", "b", &[("10.0.0.9", 1, "v1")]));
    let runtime = Runtime::new(1);
    let first = table(&resources, &Table::default(), &runtime);
    let rule = first.at(0).rule(Some(0));
    let [v1, v2, b] = &rule.destinations[..] else { panic!("two and what stands in for both") };
    assert_eq!((v1.fallback, v2.fallback, b.fallback), (Some(2), Some(2), None));
    assert_eq!((&*b.service, b.is_fallback, v1.is_fallback), ("shop/b", true, false));
    assert_eq!((rule.shares[0].total, &rule.shares[0].ends[..]), (4, &[1, 4, 4][..]));
    assert!(rule.destinations[2].ports[0].ready[0].circuit.is_some(), "with a circuit of its own");

    // A change of what stands in is a change of the Service.
    resources.put(instances("shop", "b", &[("10.0.0.8", 1, "v1")]));
    let second = table(&resources, &first, &runtime);
    assert_eq!(instances_of(&second, 0, Some(0), 2)[0].address.to_string(), "10.0.0.8:1");
}
