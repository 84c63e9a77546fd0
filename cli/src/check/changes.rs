//! What a change does, in words: which rules and policies are new, gone or other than before, which requests go elsewhere for it, what
//! no request reaches any more and what breaks. Pure: two states in, a list out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use switchyard_controller::Loaded;
use switchyard_controller::compile::conflicts::moved;
use switchyard_controller::object::{Kind, Object, ObjectKey, Service, ServiceKey};
use switchyard_controller::world::{World, rule_service};
use switchyard_crds::findings::ExampleRequest;
use switchyard_crds::route_rule::{Destination, FilterType};
use switchyard_crds::{Finding, ObjectName, Place, Reason, RouteRule};

/// One thing that is other than before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) change: What,
    /// The object that it is about.
    #[serde(flatten)]
    pub(super) object: ObjectName,
    /// Where it is written now; nowhere if it is gone.
    #[serde(flatten)]
    pub(super) place: Option<Place>,
    /// A lower-case fragment.
    pub(super) message: String,
    /// A request that shows it.
    pub(super) example: Option<ExampleRequest>,
}

/// What sort of change, in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// It says something else.
    Changed,
    /// Requests go elsewhere.
    Moved,
    /// No request reaches it any more.
    Unreachable,
    /// Something is wrong that was not.
    Broken,
    /// Something is not wrong any more.
    Mended,
}

/// Fields of one object that are told one by one; of more, only how many.
const FIELDS: usize = 6;

impl Change {
    /// The request that shows it, where its message does not.
    pub(super) fn request(&self) -> Option<String> {
        let shown = matches!(self.change, What::Changed | What::Moved);
        self.example.as_ref().filter(|_| shown).map(ToString::to_string)
    }

    /// Both in one line.
    pub(super) fn told(&self) -> String {
        match self.request() {
            Some(request) => format!("{}, such as {request}", self.message),
            None => self.message.clone(),
        }
    }
}

/// All that is other than before.
pub(super) fn changes(before: &Loaded, after: &Loaded) -> Vec<Change> {
    let mut changes = of_objects(before, after);
    for service in before.world.services().intersection(&after.world.services()) {
        of_requests(before, after, service, &mut changes);
    }
    changes.extend(of_findings(&before.findings, &after.findings));
    for change in &mut changes {
        change.place = change.place.take().or_else(|| after.place(&change.object));
    }
    changes.sort_by(|a, b| (a.change, &a.object, &a.message).cmp(&(b.change, &b.object, &b.message)));
    changes
}

fn change(what: What, object: &ObjectName, message: String) -> Change {
    Change { change: what, object: object.clone(), place: None, message, example: None }
}

/// The rules and policies of a state.
fn customs(loaded: &Loaded) -> BTreeMap<&ObjectKey, &Object> {
    let ours = |key: &&ObjectKey| matches!(key.kind, Kind::RouteRule | Kind::CircuitPolicy | Kind::RetryPolicy);
    let keys = loaded.places.keys().filter(ours);
    keys.filter_map(|key| Some((key, loaded.world.custom_object(key)?))).collect()
}

fn of_objects(before: &Loaded, after: &Loaded) -> Vec<Change> {
    let (old, new) = (customs(before), customs(after));
    let keys: BTreeSet<&ObjectKey> = old.keys().chain(new.keys()).copied().collect();
    let mut changes = Vec::new();
    for key in keys {
        let name = key.object_name();
        match (old.get(key), new.get(key)) {
            (None, Some(object)) => changes.push(change(What::Added, &name, purpose(object))),
            (Some(object), None) if !is_refused(after, &name) => {
                changes.push(change(What::Removed, &name, purpose(object)));
            }
            (Some(old), Some(new)) if spec(old) != spec(new) => {
                changes.push(change(What::Changed, &name, differences(old, new)));
            }
            _ => {}
        }
    }
    changes
}

/// What is refused now, whatever it says: what held before stays in force.
fn is_refused(after: &Loaded, name: &ObjectName) -> bool {
    after.findings.iter().any(|finding| finding.is_error() && finding.object == *name)
}

/// Requests of a Service that go elsewhere. Where they go by the same rule, which now does something else, that change gets the example.
fn of_requests(before: &Loaded, after: &Loaded, key: &ServiceKey, changes: &mut Vec<Change>) {
    let (Some(old), Some(new)) = (before.world.service(key), after.world.service(key)) else { return };
    let rules = |world: &'_ World| world.rules_of(key).cloned().collect::<Vec<RouteRule>>();
    let (from, mut to) = (rules(&before.world), rules(&after.world));
    let stays =
        |rule: &&RouteRule| is_refused(after, &name_of(rule)) && !to.iter().any(|new| name_of(new) == name_of(rule));
    let staying: Vec<RouteRule> = from.iter().filter(stays).cloned().collect();
    to.extend(staying);
    if from == to && old == new {
        return;
    }
    let mut service = new.clone();
    service
        .ports
        .extend(old.ports.iter().filter(|port| !new.ports.iter().any(|other| other.port == port.port)).cloned());
    let is_same =
        |a: Option<usize>, b: Option<usize>| does(&service, a.map(|a| &from[a])) == does(&service, b.map(|b| &to[b]));
    for found in moved(&service, &from.iter().collect::<Vec<_>>(), &to.iter().collect::<Vec<_>>(), &is_same) {
        let (old, new) = (found.from.map(|at| &from[at]), found.to.map(|at| &to[at]));
        let names = [old.map(name_of), new.map(name_of)];
        if let [Some(was), Some(is)] = &names
            && was == is
        {
            let same = changes.iter_mut().find(|change| change.change == What::Changed && change.object == *is);
            same.into_iter().for_each(|change| change.example = Some(found.example.clone()));
            continue;
        }
        let [was, is] = [(&names[0], old), (&names[1], new)].map(|(name, rule)| match (name, rule) {
            (Some(name), Some(rule)) => format!("{}/{} ({})", name.namespace, name.name, goes(&service, rule)),
            _ => "no rule (any instance)".to_owned(),
        });
        let about = names.into_iter().rev().flatten().next().unwrap_or_default();
        let mut moved =
            change(What::Moved, &about, format!("requests for Service {key} that went by {was} now go by {is}"));
        moved.example = Some(found.example);
        changes.push(moved);
    }
}

/// All that a rule does with a request, to compare: two rules that do the same may stand in for one another.
fn does(service: &Service, rule: Option<&RouteRule>) -> Option<Value> {
    let rule = rule?;
    let mut spec = serde_json::to_value(&rule.spec).unwrap_or_default();
    let own = rule.metadata.namespace.clone();
    if let Some(fields) = spec.as_object_mut() {
        for matching in ["matches", "priority", "port", "service", "serviceNamespace"] {
            fields.remove(matching);
        }
        let destinations = fields.get_mut("destinations").and_then(Value::as_array_mut);
        for to in destinations.into_iter().flatten().filter(|to| to["namespace"].is_null()) {
            to["namespace"] = own.clone().unwrap_or_else(|| service.namespace.clone()).into();
        }
    }
    Some(spec)
}

/// What was not said before, and what is not said any more.
fn of_findings(before: &[Finding], after: &[Finding]) -> Vec<Change> {
    let told = |findings: &[Finding]| {
        let worth = |finding: &&Finding| {
            !matches!(finding.reason, Reason::UnknownKind | Reason::NotEnforced | Reason::NotOptedIn)
                || finding.is_error()
        };
        let key = |finding: &Finding| {
            (finding.object.clone(), finding.reason, finding.field.clone(), finding.message.clone())
        };
        findings.iter().filter(worth).map(|finding| (key(finding), finding.clone())).collect::<BTreeMap<_, _>>()
    };
    let (old, new) = (told(before), told(after));
    let as_change = |what, finding: &Finding| Change {
        change: what,
        object: finding.object.clone(),
        place: if what == What::Mended { None } else { finding.place.clone() },
        message: match finding.field.as_str() {
            "" => finding.message.clone(),
            field => format!("{field}: {}", finding.message),
        },
        example: finding.example.clone(),
    };
    let come = new.iter().filter(|(key, _)| !old.contains_key(*key)).map(|(_, finding)| {
        let what = if finding.reason == Reason::Shadowed { What::Unreachable } else { What::Broken };
        as_change(what, finding)
    });
    let gone =
        old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, finding)| as_change(What::Mended, finding));
    come.chain(gone).collect()
}

fn name_of(rule: &RouteRule) -> ObjectName {
    let own = |name: &Option<String>| name.clone().unwrap_or_default();
    ObjectName {
        kind: "RouteRule".to_owned(),
        namespace: own(&rule.metadata.namespace),
        name: own(&rule.metadata.name),
    }
}

fn spec(object: &Object) -> Value {
    let spec = match object {
        Object::RouteRule(rule) => serde_json::to_value(&rule.spec),
        Object::CircuitPolicy(policy) => serde_json::to_value(&policy.spec),
        Object::RetryPolicy(policy) => serde_json::to_value(&policy.spec),
        _ => return Value::Null,
    };
    // What cannot be written as JSON cannot be read from YAML either.
    spec.unwrap_or_default()
}

/// What an object is for, in a few words.
fn purpose(object: &Object) -> String {
    let targets = |refs: &[switchyard_crds::target::TargetRef]| {
        let names: BTreeSet<&str> = refs.iter().map(|target| target.name.as_str()).collect();
        match names.is_empty() {
            true => "for the rules that name it".to_owned(),
            false => format!("for Service {}", names.into_iter().collect::<Vec<_>>().join(", ")),
        }
    };
    match object {
        Object::RouteRule(rule) => {
            let of = rule_service(rule);
            let service = Service { namespace: of.namespace.clone(), name: of.name.clone(), ..Service::default() };
            format!("for Service {of}: {}", goes(&service, rule))
        }
        Object::CircuitPolicy(policy) => targets(&policy.spec.target_refs),
        Object::RetryPolicy(policy) => targets(&policy.spec.target_refs),
        _ => String::new(),
    }
}

/// Where a rule sends its requests: `v2 20 %, v1 80 %`.
fn goes(service: &Service, rule: &RouteRule) -> String {
    let ends = rule.spec.filters.iter().find_map(|filter| match filter.kind {
        FilterType::RequestRedirect => Some("redirected"),
        FilterType::DirectResponse => Some("answered by the agent"),
        _ => None,
    });
    if let Some(end) = ends {
        return end.to_owned();
    }
    let shares = shares(rule);
    let destinations = rule.spec.destinations.iter().zip(shares);
    let drawn = destinations.filter(|(_, share)| !share.is_empty());
    let drawn = drawn.map(|(to, share)| format!("{} {share}", destination(service, rule, to)));
    let faults = rule.spec.filters.iter().filter_map(|filter| filter.fault.as_ref());
    let aborted = faults.filter_map(|fault| fault.abort.as_ref());
    let aborted = aborted.map(|abort| format!("but {} answered {} as a fault", abort.percent, abort.status));
    drawn.chain(aborted).collect::<Vec<_>>().join(", ")
}

/// The share of each destination; empty where it has none.
fn shares(rule: &RouteRule) -> Vec<String> {
    let weights = rule.spec.destinations.iter().map(|to| f64::from(to.weight.max(0)));
    let total: f64 = weights.clone().sum();
    weights.map(|weight| if weight > 0.0 { percent(weight / total) } else { String::new() }).collect()
}

/// `33.3 %`.
fn percent(share: f64) -> String {
    let tenths = (share * 1000.0).round() / 10.0;
    if tenths == 0.0 { "under 0.1 %".to_owned() } else { format!("{tenths} %") }
}

/// A destination by what tells it from the others of the rule.
fn destination(service: &Service, rule: &RouteRule, to: &Destination) -> String {
    let namespace = to.namespace.as_ref().or(rule.metadata.namespace.as_ref());
    let is_own = to.service == service.name && namespace.is_none_or(|namespace| *namespace == service.namespace);
    let labels = to.subset.iter().map(|(name, value)| format!("{name}={value}"));
    let parts: Vec<String> =
        to.version.iter().cloned().chain(labels).chain(to.port.map(|port| format!("port {port}"))).collect();
    match (is_own, parts.is_empty()) {
        (true, false) => parts.join(" "),
        (true, true) => "any version".to_owned(),
        (false, _) => [vec![to.service.clone()], parts].concat().join(" "),
    }
}

/// What two states of an object say differently.
fn differences(old: &Object, new: &Object) -> String {
    let mut told = Vec::new();
    // Filters of a destination are told field by field.
    let unfiltered = |rule: &RouteRule| {
        let plain = rule.spec.destinations.iter().cloned().map(|to| Destination { filters: Vec::new(), ..to });
        plain.collect::<Vec<_>>()
    };
    if let (Object::RouteRule(old), Object::RouteRule(new)) = (old, new)
        && unfiltered(old) != unfiltered(new)
    {
        told.push(destinations(old, new));
    }
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves("spec", &spec(old), &mut before);
    leaves("spec", &spec(new), &mut after);
    let is_told =
        |field: &str| !told.is_empty() && field.starts_with("spec.destinations") && !field.contains("].filters[");
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).filter(|field| !is_told(field)).collect();
    let other = |field: &&&String| before.get(**field) != after.get(**field);
    let mut fields: Vec<String> = fields
        .iter()
        .filter(other)
        .map(|field| match (before.get(*field), after.get(*field)) {
            (Some(was), Some(is)) => format!("{field} {was} → {is}"),
            (None, Some(is)) => format!("{field} {is} is new"),
            (Some(was), _) => format!("{field} {was} is gone"),
            (None, None) => String::new(),
        })
        .collect();
    let more = fields.len().saturating_sub(FIELDS);
    fields.truncate(FIELDS);
    told.extend(fields);
    if more > 0 {
        told.push(format!("and {more} more fields"));
    }
    told.join("; ")
}

/// `v2 10 → 20 %, v1 90 → 80 %` where only weights differ, else all of both.
fn destinations(old: &RouteRule, new: &RouteRule) -> String {
    let of = rule_service(new);
    let service = Service { namespace: of.namespace, name: of.name, ..Service::default() };
    let unweighted = |rule: &RouteRule| {
        let plain =
            rule.spec.destinations.iter().cloned().map(|to| Destination { weight: 0, filters: Vec::new(), ..to });
        plain.collect::<Vec<_>>()
    };
    if unweighted(old) != unweighted(new) {
        return format!("{} → {}", goes(&service, old), goes(&service, new));
    }
    let part = |((to, was), is): ((&Destination, String), String)| {
        let [was, is] = [was, is].map(|share| if share.is_empty() { "0 %".to_owned() } else { share });
        let name = destination(&service, new, to);
        if was == is { format!("{name} {is}") } else { format!("{name} {} → {is}", was.trim_end_matches(" %")) }
    };
    new.spec.destinations.iter().zip(shares(old)).zip(shares(new)).map(part).collect::<Vec<_>>().join(", ")
}

/// Every value of an object by its path.
fn leaves(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, value)| leaves(&format!("{path}.{name}"), value, into));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(at, value)| leaves(&format!("{path}[{at}]"), value, into));
        }
        Value::Null => {}
        Value::String(text) => drop(into.insert(path.to_owned(), text.clone())),
        other => drop(into.insert(path.to_owned(), other.to_string())),
    }
}
