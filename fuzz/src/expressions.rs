//! Takes each line for a regular expression that a rule asks of a header field, and has the rules analysed. A request that is shown must
//! be matched by the rule that it is shown of, and by one of those that are named beside it; of two rules with one expression the second
//! must be said to get nothing.

use regex_automata::meta::Regex;
use serde_json::json;
use switchyard_controller::compile::conflicts::analyse;
use switchyard_controller::object::{Service, ServicePort};
use switchyard_crds::validate::usable;
use switchyard_crds::{Reason, RouteRule};

/// More than these say nothing new, and take longer.
const EXPRESSIONS: usize = 4;
const LONGEST: usize = 200;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let fits = |line: &&str| line.len() <= LONGEST && usable(line).is_ok();
    let expressions: Vec<&str> = text.lines().filter(fits).take(EXPRESSIONS).collect();
    let rule = |at: usize, expression: &str| -> RouteRule {
        let header = json!({"type": "RegularExpression", "name": "x", "value": expression});
        serde_json::from_value(json!({
            "apiVersion": "switchyard.dev/v1alpha1",
            "kind": "RouteRule",
            "metadata": {"name": format!("r{at}"), "namespace": "shop"},
            "spec": {"service": "a", "matches": [{"headers": [header]}]},
        }))
        .expect("a rule")
    };
    let rules: Vec<RouteRule> = expressions.iter().enumerate().map(|(at, text)| rule(at, text)).collect();
    let rules: Vec<&RouteRule> = rules.iter().collect();
    let ports = vec![ServicePort { name: "http".into(), port: 80, ..ServicePort::default() }];
    let service = Service { namespace: "shop".into(), name: "a".into(), ports, ..Service::default() };
    let findings = analyse(&service, &rules);
    for finding in &findings {
        let Some(example) = &finding.example else { continue };
        let value = example.headers.iter().find(|(name, _)| name == "x").map_or("", |(_, value)| value.as_str());
        let matches = |name: &str| {
            let at: usize = name.trim_start_matches("shop/").trim_start_matches('r').parse().expect("a rule's number");
            Regex::new(&format!("^(?:{})$", expressions[at])).expect("it was usable").is_match(value)
        };
        assert!(matches(&finding.object.name), "{value:?}: {finding:?}");
        assert!(finding.others.iter().any(|other| matches(other)), "{value:?}: {finding:?}");
    }
    for (at, expression) in expressions.iter().enumerate() {
        if expressions[..at].contains(expression) {
            let is_told = |reason| findings.iter().any(|f| f.reason == reason && f.object.name == format!("r{at}"));
            assert!(is_told(Reason::Shadowed) || is_told(Reason::Conflicted), "{expression:?}: {findings:?}");
        }
    }
}
