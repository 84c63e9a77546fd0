//! What the conflict analysis of one Service costs, by the number of its rules and the shape of their matches: `cargo bench -p
//! switchyard-controller`. Each figure is the best of a few runs, and for the whole analysis: nothing is kept of the one before, so it is
//! also what a change of one rule costs.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs, reason = "a measurement")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use switchyard_controller::compile::conflicts::analyse;
use switchyard_controller::object::{Service, ServicePort};
use switchyard_crds::RouteRule;

/// The matches of a rule, by its number.
type Matches = fn(usize) -> Value;

const SHAPES: [(&str, Matches); 13] = [
    ("exact paths", |i| json!([{"path": {"type": "Exact", "value": format!("/item/{i}")}}])),
    ("prefixes", |i| json!([{"path": {"value": format!("/area/{i}")}}])),
    ("one header", |i| json!([{"headers": [{"name": "x-tenant", "value": format!("t{i}")}]}])),
    ("one query parameter", |i| json!([{"queryParams": [{"name": "tenant", "value": format!("t{i}")}]}])),
    ("one cookie", |i| json!([{"cookies": [{"name": "tenant", "value": format!("t{i}")}]}])),
    (
        "expressions, told apart by their beginnings",
        |i| json!([{"path": {"type": "RegularExpression", "value": format!("/r{i}/[0-9]+(/.*)?")}}]),
    ),
    (
        "expressions, told apart in the middle",
        |i| json!([{"path": {"type": "RegularExpression", "value": format!("/v[0-9]+/r{i}/[^/]+")}}]),
    ),
    (
        "expressions, told apart in the middle, with any end",
        |i| json!([{"path": {"type": "RegularExpression", "value": format!("/[a-z]+/r{i}/.*")}}]),
    ),
    (
        "expressions, told apart at their ends",
        |i| json!([{"headers": [{"type": "RegularExpression", "name": "x-user", "value": format!(".+@t{i}\\.example")}]}]),
    ),
    (
        "expressions that only automata tell apart",
        |i| json!([{"headers": [{"type": "RegularExpression", "name": "x", "value": format!(".*[ab]-{i}-[ab].*[xy]")}]}]),
    ),
    ("another header each", |i| json!([{"headers": [{"name": format!("x-{i}"), "value": "1"}]}])),
    ("all the same", |_| json!([{"path": {"value": "/a"}}])),
    ("mixed", |i| match i % 5 {
        0 => json!([{"path": {"value": format!("/area/{}", i / 3)}, "method": "GET"}]),
        1 => json!([{"path": {"type": "Exact", "value": format!("/area/{}/x", i / 7)}}]),
        2 => json!([{"headers": [{"name": "x-tenant", "value": format!("t{}", i / 2)}], "path": {"value": "/area"}}]),
        3 => json!([{"path": {"type": "RegularExpression", "value": format!("/area/{}/[a-z]+", i / 4)}}]),
        _ => json!([{"cookies": [{"name": "c", "value": format!("{}", i / 6)}], "source": {"namespace": "web"}}]),
    }),
];

fn rule(i: usize, matches: Value) -> RouteRule {
    let value = json!({
        "apiVersion": "switchyard.dev/v1alpha1", "kind": "RouteRule",
        "metadata": {"name": format!("rule-{i}"), "namespace": "shop"},
        "spec": {"service": "a", "matches": matches, "destinations": [{"service": "a"}]},
    });
    serde_json::from_value(value).unwrap()
}

fn main() {
    let ports = vec![ServicePort { name: "http".to_owned(), port: 80, ..ServicePort::default() }];
    let service = Service { namespace: "shop".to_owned(), name: "a".to_owned(), ports, ..Service::default() };
    println!("{:<48}{:>12}{:>12}{:>12}{:>10}", "milliseconds for ... rules", 100, 1_000, 10_000, "findings");
    for (name, matches) in SHAPES {
        print!("{name:<48}");
        let mut findings = 0;
        for count in [100, 1_000, 10_000] {
            let rules: Vec<RouteRule> = (0..count).map(|i| rule(i, matches(i))).collect();
            let rules: Vec<&RouteRule> = rules.iter().collect();
            let mut best = Duration::MAX;
            for _ in 0..3 {
                let begun = Instant::now();
                findings = analyse(&service, &rules).len();
                best = best.min(begun.elapsed());
            }
            print!("{:>12.2}", best.as_secs_f64() * 1000.0);
        }
        println!("{findings:>10}");
    }
}
