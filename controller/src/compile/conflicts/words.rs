//! What the analysis found, as findings for people, with a request that shows it.

use std::collections::BTreeSet;

use switchyard_crds::findings::ExampleRequest;
use switchyard_crds::{Finding, Reason, RouteRule};

use super::NAMED;
use super::Rival;
use super::entries::{Entry, Thing};
use super::reach::{Question, Request};
use super::values::Domain;
use crate::compile::{name_of, qualified};

/// A rule that no request reaches: its entries, and those that take their requests.
pub(super) fn shadowed(rules: &[&RouteRule], question: &Question<'_, '_>, own: &[usize], takers: &[usize]) -> Finding {
    let entries = &question.entries.entries;
    let first = &entries[own[0]];
    if takers.is_empty() {
        let about = question.contradiction(own[0]).map_or_else(String::new, |thing| format!(" about {}", name(thing)));
        let entry = if own.len() > 1 { "any of its matches" } else { "it" };
        let message = format!("no request can match {entry}: what it asks for{about} contradicts itself");
        return Finding::warning(Reason::Shadowed, field(first), message);
    }
    let others: BTreeSet<usize> = takers.iter().map(|at| entries[*at].rule).collect();
    let names = named(rules, &others);
    let example = own.iter().find_map(|at| question.any(&[*at])).map(|request| shown(question, &request));
    let such = example.as_ref().map_or_else(String::new, |example| format!(", such as {example}"));
    let why: BTreeSet<&str> = takers.iter().map(|at| comes_first(rules, &entries[*at], first)).collect();
    let why = why.into_iter().collect::<Vec<_>>().join(" or ");
    let message = match names.as_slice() {
        [one] => format!(
            "no request reaches this rule: {one} takes every one that it matches{such}, and comes first ({why}); give this rule a higher \
             priority or other matches, or remove it"
        ),
        _ => format!(
            "no request reaches this rule: {} together take every one that it matches{such}, and come first ({why}); give this rule a \
             higher priority or other matches, or remove it",
            list(&names)
        ),
    };
    let mut finding = Finding::warning(
        Reason::Shadowed,
        if own.len() > 1 { "spec.matches".to_owned() } else { field(first) },
        message,
    );
    finding.others = names;
    finding.example = example;
    finding
}

/// A rule and the older ones that take requests of it for their age alone.
pub(super) fn conflicted(rules: &[&RouteRule], question: &Question<'_, '_>, mut rivals: Vec<Rival>) -> Finding {
    let entries = &question.entries.entries;
    // What can be shown first, then who is asked first.
    rivals.sort_by_key(|rival| (rival.request.is_none(), rival.entries[1]));
    let others: BTreeSet<usize> = rivals.iter().map(|rival| entries[rival.entries[1]].rule).collect();
    let mut names = named(rules, &others);
    let shown_first = qualified(&name_of(rules[entries[rivals[0].entries[1]].rule]));
    let more = match names.len() {
        1 => String::new(),
        count if count >= NAMED => ", and so do others".to_owned(),
        count => format!(", and so do {} more", count - 1),
    };
    let example = rivals[0].request.as_ref().map(|request| shown(question, request));
    let message = match &example {
        Some(example) => format!(
            "{shown_first} matches the same requests, such as {example}, and gets them for its age alone{more}; give one of them a priority, \
             or matches that tell them apart"
        ),
        None => format!(
            "{shown_first} may match the same requests{more}, which cannot be told for certain, and would get them for its age alone; give \
             one of them a priority"
        ),
    };
    names.sort();
    let mut finding = Finding::warning(Reason::Conflicted, field(&entries[rivals[0].entries[0]]), message);
    finding.others = names;
    finding.example = example;
    finding
}

/// Why an entry is asked before another.
fn comes_first(rules: &[&RouteRule], taker: &Entry<'_>, taken: &Entry<'_>) -> &'static str {
    let priority = |entry: &Entry<'_>| rules[entry.rule].spec.priority;
    match () {
        () if priority(taker) != priority(taken) => "by its priority",
        () if taker.class != taken.class => "its matches are more specific",
        () => "by age, then by name",
    }
}

fn named(rules: &[&RouteRule], which: &BTreeSet<usize>) -> Vec<String> {
    which.iter().map(|rule| qualified(&name_of(rules[*rule]))).collect()
}

/// `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        _ => names.concat(),
    }
}

fn field(entry: &Entry<'_>) -> String {
    entry.position.map_or_else(|| "spec".to_owned(), |position| format!("spec.matches[{position}]"))
}

fn name(thing: &Thing<'_>) -> String {
    match thing {
        Thing::Port => "the port".to_owned(),
        Thing::Path => "the path".to_owned(),
        Thing::Method => "the method".to_owned(),
        Thing::Header(name) => format!("the header {name}"),
        Thing::Query(name) => format!("the query parameter {name}"),
        Thing::Cookie(name) => format!("the cookie {name}"),
        Thing::Namespace => "the caller's namespace".to_owned(),
        Thing::ServiceAccount => "the caller's ServiceAccount".to_owned(),
        Thing::Label(name) => format!("the caller's label {name}"),
    }
}

/// The request as somebody would send it.
pub(super) fn shown(question: &Question<'_, '_>, request: &Request) -> ExampleRequest {
    let mut example = ExampleRequest { method: "GET".to_owned(), path: "/".to_owned(), ..ExampleRequest::default() };
    let (mut query, mut cookies, mut caller) = (Vec::new(), Vec::new(), Vec::new());
    let mut port = None;
    for (thing, value) in &request.values {
        let (thing, domain) = &question.entries.things[*thing as usize];
        let Some(value) = value else { continue };
        let text = String::from_utf8_lossy(value).into_owned();
        match thing {
            Thing::Port => port = Some((text, domain)),
            Thing::Path => example.path = text,
            Thing::Method => example.method = text,
            Thing::Header(name) => example.headers.push((name.to_string(), text)),
            Thing::Query(name) => query.push(format!("{}={}", encoded(name.as_bytes()), encoded(value))),
            Thing::Cookie(name) => cookies.push(format!("{name}={text}")),
            Thing::Namespace => caller.push(format!("namespace {text}")),
            Thing::ServiceAccount => caller.push(format!("ServiceAccount {text}")),
            Thing::Label(name) => caller.push(format!("label {name}={text}")),
        }
    }
    if !query.is_empty() {
        example.path = format!("{}?{}", example.path, query.join("&"));
    }
    if !cookies.is_empty() {
        example.headers.push(("cookie".to_owned(), cookies.join("; ")));
    }
    if let Some((port, Domain::Port(all))) = port
        && all.len() > 1
        && !example.headers.iter().any(|(name, _)| name == "host")
    {
        example.headers.push(("host".to_owned(), format!("{}:{port}", question.host)));
    }
    example.headers.sort();
    example.caller = (!caller.is_empty()).then(|| caller.join(", "));
    example
}

/// As it stands in a query.
fn encoded(text: &[u8]) -> String {
    let letter = |byte: &u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.iter().map(letter).collect()
}
