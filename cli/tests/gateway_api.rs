//! What the Gateway API says of HTTPRoute and GRPCRoute matches, for each field that a RouteRule has too: one test per clause, named after
//! it. Rules are read from YAML, compiled by the controller and asked by the agent's table, as in traffic.
//!
//! Where a RouteRule is stricter (two entries for one header name, a path that is not in order), it is refused rather than read in one way;
//! where no rule matches, the Service's instances answer instead of a 404 (docs/rules.md).

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::Request;
use http::request::Parts;
use switchyard_agent::matching::{self, View};
use switchyard_agent::message;
use switchyard_agent::resources::Resources;
use switchyard_agent::runtime::Runtime;
use switchyard_agent::table::{Table, Workload};
use switchyard_controller::{compile, snapshot::Snapshot};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-service, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
";

/// A rule of that name, age and matches.
fn rule(name: &str, day: u32, matches: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    format!(
        "---
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-{day:02}T00:00:00Z'}}
spec: {{service: my-service, serviceNamespace: shop, matches: [{matches}], destinations: [{{service: my-service, namespace: shop}}]}}
"
    )
}

/// Rules as an agent has them.
struct Rules(Table);

impl Rules {
    fn new(rules: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rules.yaml"), [SERVICE, &rules.concat()].concat()).unwrap();
        let loaded = switchyard_controller::load(&[folder.path().to_owned()]).unwrap();
        let errors: Vec<_> = loaded.findings.iter().filter(|finding| finding.is_error()).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let mut snapshot = Snapshot::default();
        for service in loaded.world.services() {
            let compiled = compile::service(&loaded.world, &service);
            snapshot.set(&service, compiled.routes, compiled.instances);
        }
        let mut resources = Resources::default();
        snapshot.resources().for_each(|(_, resource)| resources.put(resource.clone()));
        Self(Table::build(&resources, &Table::default(), &Runtime::new(1), None))
    }

    /// Rules named `a`, `b` and so on, each with these matches; the first is the youngest.
    fn of(matches: &[&str]) -> Self {
        let names = ["a", "b", "c", "d", "e"];
        let rules = names.iter().zip(matches).enumerate();
        Self::new(&rules.map(|(i, (name, matches))| rule(name, 20 - i as u32, matches)).collect::<Vec<_>>())
    }

    /// The rule that takes a request, and which of its matches; `-`: none does.
    fn winner(&self, asked: Asked) -> String {
        let (mut parts, caller) = asked;
        let facts = message::prepare(&mut parts).unwrap();
        let service = self.0.at(0);
        let view = View {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            port: 80,
            grpc: facts.grpc,
            caller: caller.as_ref(),
        };
        let winner = matching::first(service, &view);
        let name = |rule: u32| service.rule(Some(rule)).name.trim_start_matches("shop/").to_owned();
        winner.map_or("-".to_owned(), |entry| format!("{} {}", name(entry.rule), entry.position))
    }

    fn takes(&self, asked: Asked) -> bool {
        self.winner(asked) != "-"
    }
}

type Asked = (Parts, Option<Workload>);

/// `METHOD /target`, and header fields as `name: value`.
fn asked(line: &str, fields: &[&str]) -> Asked {
    let (method, target) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(target).header("host", "my-service.shop");
    for field in fields {
        let (name, value) = field.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    (request.body(()).unwrap().into_parts().0, None)
}

fn get(target: &str) -> Asked {
    asked(&format!("GET {target}"), &[])
}

fn call(path: &str) -> Asked {
    asked(&format!("POST {path}"), &["content-type: application/grpc"])
}

// ------------------------------------------------------------------------------------------------ HTTPRouteRule.matches

#[test]
fn each_match_is_independent_and_a_rule_is_matched_if_any_one_is_satisfied() {
    let rules = Rules::of(&["{path: {value: /foo}, headers: [{name: version, value: v2}]}, {path: {value: /v2/foo}}"]);
    assert!(rules.takes(get("/v2/foo")));
    assert!(rules.takes(asked("GET /foo", &["version: v2"])));
    assert!(!rules.takes(get("/foo")));
}

#[test]
fn a_match_evaluates_to_true_only_if_all_conditions_are_satisfied() {
    let rules = Rules::of(&[
        "{path: {value: /foo}, method: GET, headers: [{name: version, value: v1}], queryParams: [{name: a, value: b}]}",
    ]);
    assert!(rules.takes(asked("GET /foo?a=b", &["version: v1"])));
    for (line, fields) in [
        ("GET /bar?a=b", &["version: v1"][..]),
        ("PUT /foo?a=b", &["version: v1"]),
        ("GET /foo?a=c", &["version: v1"]),
        ("GET /foo", &["version: v1"]),
        ("GET /foo?a=b", &["version: v2"]),
        ("GET /foo?a=b", &[]),
    ] {
        assert!(!rules.takes(asked(line, fields)), "{line} {fields:?}");
    }
}

#[test]
fn without_matches_the_default_is_a_prefix_match_on_slash_which_matches_every_request() {
    let rules = Rules::of(&["", "{path: {value: /}}"]);
    for asked in [get("/"), get("/x?y"), asked("DELETE /x/y", &["a: b"]), asked("OPTIONS *", &[])] {
        assert_eq!(rules.winner(asked).split(' ').next(), Some("b"), "both take it, and the older has it");
    }
    assert!(Rules::of(&[""]).takes(get("/x")));
}

// ------------------------------------------------------------------------------------------------ HTTPPathMatch

#[test]
fn path_type_exact_matches_the_path_exactly_and_with_case_sensitivity() {
    let rules = Rules::of(&["{path: {type: Exact, value: /abc}}"]);
    assert!(rules.takes(get("/abc")) && rules.takes(get("/abc?x=/")));
    for path in ["/abc/", "/abcd", "/ABC", "/", "/abc/d"] {
        assert!(!rules.takes(get(path)), "{path}");
    }
}

#[test]
fn path_type_prefix_is_split_by_slash_and_matched_element_by_element_with_case_sensitivity() {
    let rules = Rules::of(&["{path: {value: /abc}}"]);
    for (path, takes) in [
        ("/abc", true),
        ("/abc/", true),
        ("/abc/def", true),
        ("/abcd", false),
        ("/ABC", false),
        ("/", false),
        ("/x/abc", false),
    ] {
        assert_eq!(rules.takes(get(path)), takes, "{path}");
    }
}

#[test]
fn a_trailing_slash_of_a_path_prefix_is_ignored() {
    let rules = Rules::of(&["{path: {value: /abc/}}"]);
    assert!(rules.takes(get("/abc")) && rules.takes(get("/abc/")) && rules.takes(get("/abc/def")));
    assert!(!rules.takes(get("/abcd")));
}

#[test]
fn a_path_regular_expression_matches_with_case_sensitivity() {
    let rules = Rules::of(&["{path: {type: RegularExpression, value: '/v[0-9]+/[a-z]+'}}"]);
    assert!(rules.takes(get("/v12/abc")));
    assert!(!rules.takes(get("/V12/abc")) && !rules.takes(get("/v12/ABC")) && !rules.takes(get("/v12/abc/d")));
}

#[test]
fn the_default_of_a_path_type_is_path_prefix() {
    assert!(Rules::of(&["{path: {value: /abc}}"]).takes(get("/abc/def")));
}

// ------------------------------------------------------------------------------------------------ HTTPHeaderMatch

#[test]
fn the_default_of_a_header_type_is_exact_and_values_do_not_fold_case() {
    let rules = Rules::of(&["{headers: [{name: version, value: v1}]}"]);
    assert!(rules.takes(asked("GET /", &["version: v1"])));
    assert!(!rules.takes(asked("GET /", &["version: V1"])) && !rules.takes(asked("GET /", &["version: v12"])));
}

#[test]
fn header_name_matching_is_case_insensitive() {
    let rules = Rules::of(&["{headers: [{name: X-Version, value: v1}]}"]);
    assert!(rules.takes(asked("GET /", &["x-version: v1"])) && rules.takes(asked("GET /", &["X-VERSION: v1"])));
}

#[test]
fn multiple_header_matches_are_anded() {
    let rules = Rules::of(&["{headers: [{name: a, value: '1'}, {name: b, value: '2'}]}"]);
    assert!(rules.takes(asked("GET /", &["b: 2", "a: 1"])));
    assert!(!rules.takes(asked("GET /", &["a: 1"])) && !rules.takes(asked("GET /", &["a: 1", "b: 1"])));
}

#[test]
fn a_header_that_is_repeated_in_a_request_is_joined_with_a_comma() {
    let rules = Rules::of(&["{headers: [{name: a, value: '1,2'}]}"]);
    assert!(rules.takes(asked("GET /", &["a: 1", "a: 2"])) && rules.takes(asked("GET /", &["a: 1,2"])));
    assert!(!rules.takes(asked("GET /", &["a: 1"])) && !rules.takes(asked("GET /", &["a: 2", "a: 1"])));
}

#[test]
fn a_header_regular_expression_matches_the_value() {
    let rules = Rules::of(&["{headers: [{type: RegularExpression, name: a, value: 'v[0-9]+'}]}"]);
    assert!(rules.takes(asked("GET /", &["a: v12"])) && !rules.takes(asked("GET /", &["a: xv12"])));
}

// ------------------------------------------------------------------------------------------------ HTTPQueryParamMatch

#[test]
fn query_param_names_are_matched_exactly() {
    let rules = Rules::of(&["{queryParams: [{name: color, value: blue}]}"]);
    assert!(rules.takes(get("/?color=blue")) && rules.takes(get("/?a=b&color=blue")));
    assert!(
        !rules.takes(get("/?Color=blue")) && !rules.takes(get("/?colors=blue")) && !rules.takes(get("/?color=Blue"))
    );
}

#[test]
fn of_a_query_param_that_is_repeated_in_a_request_the_first_value_is_matched() {
    let rules = Rules::of(&["{queryParams: [{name: color, value: blue}]}"]);
    assert!(rules.takes(get("/?color=blue&color=green")) && !rules.takes(get("/?color=green&color=blue")));
}

#[test]
fn multiple_query_param_matches_are_anded() {
    let rules = Rules::of(&["{queryParams: [{name: a, value: '1'}, {name: b, value: '2'}]}"]);
    assert!(rules.takes(get("/?b=2&a=1")) && !rules.takes(get("/?a=1")));
}

#[test]
fn a_query_param_regular_expression_matches_the_value() {
    let rules = Rules::of(&["{queryParams: [{type: RegularExpression, name: a, value: 'v[0-9]+'}]}"]);
    assert!(rules.takes(get("/?a=v1")) && !rules.takes(get("/?a=v")));
}

// ------------------------------------------------------------------------------------------------ HTTPRouteMatch.method

#[test]
fn when_a_method_is_specified_the_route_is_matched_only_if_the_request_has_it() {
    let rules = Rules::of(&["{method: PUT}"]);
    assert!(rules.takes(asked("PUT /", &[])) && !rules.takes(get("/")) && !rules.takes(asked("put /", &[])));
}

// ------------------------------------------------------------------------------------------------ precedence

/// The older rule would win if nothing else decided, so what wins here does by its match.
fn prefers(more: &str, less: &str, asked: fn() -> Asked) {
    for (rules, winner) in [(Rules::of(&[more, less]), "a 0"), (Rules::of(&[less, more]), "b 0")] {
        assert_eq!(rules.winner(asked()), winner, "{more} before {less}");
    }
}

#[test]
fn precedence_is_given_to_an_exact_path_match() {
    prefers("{path: {type: Exact, value: /a/b}}", "{path: {value: /a/b}, method: GET}", || get("/a/b"));
    prefers("{path: {type: Exact, value: /a}}", "{path: {type: RegularExpression, value: '/[a-z]+'}}", || get("/a"));
}

#[test]
fn then_to_the_prefix_path_match_with_the_largest_number_of_characters() {
    prefers("{path: {value: /a/b}}", "{path: {value: /a}, method: GET}", || get("/a/b/c"));
    prefers("{path: {value: /a}}", "{headers: [{name: host, value: my-service.shop}]}", || get("/a"));
    prefers("{path: {value: /a/b}}", "{path: {value: '/%61/'}}", || get("/a/b"));
}

#[test]
fn then_to_a_method_match() {
    prefers("{method: GET}", "{headers: [{name: x, value: '1'}, {name: z, value: '2'}]}", || {
        asked("GET /", &["x: 1", "z: 2"])
    });
}

#[test]
fn then_to_the_largest_number_of_header_matches() {
    prefers(
        "{headers: [{name: x, value: '1'}, {name: z, value: '2'}]}",
        "{headers: [{name: x, value: '1'}], queryParams: [{name: a, value: b}, {name: c, value: d}]}",
        || asked("GET /?a=b&c=d", &["x: 1", "z: 2"]),
    );
}

#[test]
fn then_to_the_largest_number_of_query_param_matches() {
    prefers(
        "{queryParams: [{name: a, value: b}, {name: c, value: d}]}",
        "{queryParams: [{name: a, value: b}]}",
        || get("/?a=b&c=d"),
    );
}

#[test]
fn ties_across_routes_are_broken_by_the_oldest_creation_timestamp() {
    let rules = |a, b| Rules::new(&[rule("a", a, "{path: {value: /x}}"), rule("b", b, "{path: {value: /x}}")]);
    assert_eq!(rules(2, 1).winner(get("/x")), "b 0");
    assert_eq!(rules(1, 2).winner(get("/x")), "a 0");
}

#[test]
fn then_by_the_route_that_appears_first_in_alphabetical_order_by_namespace_and_name() {
    let rules = Rules::new(&["b", "a"].map(|name| rule(name, 1, "{path: {value: /x}}")));
    assert_eq!(rules.winner(get("/x")), "a 0");
    // Rules of other namespaces are for their own callers.
    let web = || Some(Workload { namespace: "web".into(), ..Workload::default() });
    let asks = "{source: {namespace: web}}";
    let rules = Rules::new(&[rule("web/a", 1, ""), rule("b", 1, asks)]);
    assert_eq!(rules.winner((get("/x").0, web())), "b 0", "shop before web");
}

#[test]
fn ties_within_a_route_are_broken_by_the_first_matching_rule_in_list_order() {
    let rules = Rules::of(&["{headers: [{name: x, value: '1'}]}, {headers: [{name: z, value: '1'}]}"]);
    assert_eq!(rules.winner(asked("GET /", &["x: 1", "z: 1"])), "a 0");
    assert_eq!(rules.winner(asked("GET /", &["z: 1"])), "a 1");
}

#[test]
fn precedence_is_determined_across_all_rules_and_not_within_one_alone() {
    let rules = Rules::of(&["{path: {type: Exact, value: /a}}, {path: {value: /}}", "{path: {value: /a}}"]);
    assert_eq!(rules.winner(get("/a")), "a 0");
    assert_eq!(rules.winner(get("/a/b")), "b 0");
    assert_eq!(rules.winner(get("/b")), "a 1");
}

// ------------------------------------------------------------------------------------------------ GRPCMethodMatch

#[test]
fn a_grpc_match_is_by_service_and_method_exactly_and_with_case_sensitivity() {
    let rules = Rules::of(&["{grpc: {service: shop.Cart, method: AddItem}}"]);
    assert!(rules.takes(call("/shop.Cart/AddItem")));
    for path in ["/shop.Cart/additem", "/shop.cart/AddItem", "/Cart/AddItem", "/shop.Cart/AddItems", "/shop.Cart"] {
        assert!(!rules.takes(call(path)), "{path}");
    }
    assert!(!rules.takes(asked("POST /shop.Cart/AddItem", &["content-type: application/json"])), "which is no gRPC");
}

#[test]
fn a_grpc_service_that_is_not_given_matches_any_and_so_does_a_method() {
    let by_service = Rules::of(&["{grpc: {service: shop.Cart}}"]);
    assert!(by_service.takes(call("/shop.Cart/Any")) && !by_service.takes(call("/shop.Carts/Any")));
    let by_method = Rules::of(&["{grpc: {method: AddItem}}"]);
    assert!(by_method.takes(call("/any.Service/AddItem")) && !by_method.takes(call("/any.Service/Other")));
    assert!(Rules::of(&["{grpc: {}}"]).takes(call("/any.Service/Any")));
}

#[test]
fn grpc_precedence_is_given_to_the_largest_number_of_characters_in_a_matching_service_then_method_then_headers() {
    let add = || call("/shop.Cart/AddItem");
    prefers("{grpc: {service: shop.Cart}}", "{grpc: {method: AddItem}, headers: [{name: x, type: Absent}]}", add);
    prefers("{grpc: {service: shop.Cart, method: AddItem}}", "{grpc: {service: shop.Cart}}", add);
    prefers("{grpc: {method: AddItem}}", "{headers: [{name: content-type, value: application/grpc}]}", add);
    prefers(
        "{grpc: {service: shop.Cart}, headers: [{name: content-type, value: application/grpc}]}",
        "{grpc: {service: shop.Cart}}",
        add,
    );
}

// ------------------------------------------------------------------------------------------------ Routes for Services (GAMMA)

#[test]
fn a_consumer_route_applies_to_requests_from_its_own_namespace_only() {
    let rules = Rules::new(&[rule("web/a", 1, "{path: {value: /x}}"), rule("b", 1, "{path: {value: /}}")]);
    let from = |namespace: &str| {
        let caller = Workload { namespace: namespace.into(), ..Workload::default() };
        rules.winner((get("/x").0, Some(caller)))
    };
    assert_eq!((from("web").as_str(), from("shop").as_str()), ("web/a 0", "b 0"));
    assert_eq!(rules.winner(get("/x")), "b 0", "and to nobody that is not known");
}
