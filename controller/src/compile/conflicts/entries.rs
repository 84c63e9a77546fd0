//! What the entries of rules ask for, as conditions on the things that a request has: all kinds of match alike, so that what compares
//! them knows no kinds. Whatever a kind means is said here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use switchyard_crds::RouteRule;
use switchyard_crds::route_rule::{GrpcMatch, PathMatch, PathMatchType, RouteMatch, SourceMatch, ValueMatchType};

use crate::compile::order::{Rank, Specificity};
use crate::compile::routes::EVERYTHING;
use crate::object::Service;

use super::pattern::Pattern;
use super::values::{Domain, Test};

/// A thing that a request has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thing<'a> {
    Port,
    Path,
    Method,
    /// By its name in lower case.
    Header(Cow<'a, str>),
    Query(&'a str),
    Cookie(&'a str),
    /// Of the Pod that calls.
    Namespace,
    ServiceAccount,
    Label(&'a str),
}

/// A thing by its number in [`Entries::things`].
pub(super) type ThingId = u32;

/// One condition.
pub(super) struct Condition<'a> {
    pub(super) of: ThingId,
    pub(super) test: Test<'a>,
}

/// One entry of a rule.
pub(super) struct Entry<'a> {
    /// The rule, by its position in the list.
    pub(super) rule: usize,
    /// Which of its `matches`; none: it has none.
    pub(super) position: Option<usize>,
    /// Entries that nothing but age tells apart are of one class; the lesser is asked first.
    pub(super) class: usize,
    /// All of these must hold; in the order of their things.
    pub(super) conditions: Vec<Condition<'a>>,
    /// It asks for a gRPC call.
    pub(super) is_grpc: bool,
}

/// The entries of a Service's rules in order of precedence.
pub(super) struct Entries<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) things: Vec<(Thing<'a>, Domain)>,
    /// Those that every request has.
    pub(super) always: Vec<ThingId>,
}

/// Makes the entries.
struct Reader<'a> {
    service: &'a Service,
    things: Vec<(Thing<'a>, Domain)>,
    ids: HashMap<Thing<'a>, ThingId>,
    patterns: HashMap<&'a str, Option<Rc<Pattern>>>,
}

/// An entry that agents cannot use: an expression of it does not compile.
struct Unusable;

impl<'a> Entries<'a> {
    /// Reads rules. A rule for a port that the Service lacks has no entries: it is said of it elsewhere that nothing is there.
    pub(super) fn of(service: &'a Service, rules: &[&'a RouteRule]) -> Self {
        let mut reader = Reader { service, things: Vec::new(), ids: HashMap::new(), patterns: HashMap::new() };
        // What every request has, under numbers that are known.
        for thing in [Thing::Port, Thing::Path, Thing::Method] {
            reader.id(thing);
        }
        let mut ranked = Vec::new();
        for (at, rule) in rules.iter().enumerate() {
            let has_port = |port| service.tcp_ports().any(|other| i32::from(other.port) == port);
            if rule.spec.port.is_some_and(|port| !has_port(port)) {
                continue;
            }
            let given = rule.spec.matches.iter().enumerate().map(|(position, entry)| (Some(position), entry));
            let everything = rule.spec.matches.is_empty().then_some((None, &EVERYTHING));
            for (position, entry) in given.chain(everything) {
                if let Ok(conditions) = reader.conditions(rule, entry) {
                    let rank = Rank::new(rule, position.unwrap_or_default(), entry);
                    let specificity = Specificity::new(rule, entry);
                    let is_grpc = entry.grpc.is_some();
                    ranked.push((rank, specificity, Entry { rule: at, position, class: 0, conditions, is_grpc }));
                }
            }
        }
        ranked.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut class = 0;
        for i in 1..ranked.len() {
            if ranked[i].1 != ranked[i - 1].1 {
                class += 1;
            }
            ranked[i].2.class = class;
        }
        let always = (0..).zip(&reader.things).filter(|(_, (_, domain))| domain.default_value().is_some());
        Self {
            entries: ranked.into_iter().map(|(.., entry)| entry).collect(),
            always: always.map(|(id, _)| id).collect(),
            things: reader.things,
        }
    }

    /// What can be there of a thing.
    pub(super) fn domain(&self, thing: ThingId) -> &Domain {
        &self.things[thing as usize].1
    }

    /// The number of a thing, if any rule asks for it.
    pub(super) fn id(&self, thing: &Thing<'_>) -> Option<ThingId> {
        let found = self.things.iter().position(|(other, _)| other == thing);
        found.and_then(|at| ThingId::try_from(at).ok())
    }
}

impl Entry<'_> {
    /// Whether no request matches both, as far as the beginnings of values tell.
    pub(super) fn is_apart_from(&self, other: &Self) -> bool {
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.conditions.get(i), other.conditions.get(j)) {
            match a.of.cmp(&b.of) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => {
                    if a.test.is_apart_from(&b.test) {
                        return true;
                    }
                    // Of several conditions on one thing the further ones are left to the exact answer.
                    (i, j) = (i + 1, j + 1);
                }
            }
        }
        false
    }
}

impl<'a> Reader<'a> {
    fn id(&mut self, thing: Thing<'a>) -> ThingId {
        if let Some(id) = self.ids.get(&thing) {
            return *id;
        }
        let domain = match &thing {
            Thing::Port => Domain::Port(self.service.tcp_ports().map(|port| port.port.to_string()).collect()),
            Thing::Path => Domain::Path,
            Thing::Method => Domain::Method,
            Thing::Header(name) if name == "host" => {
                Domain::Host(format!("{}.{}", self.service.name, self.service.namespace))
            }
            Thing::Header(_) => Domain::Header,
            Thing::Query(_) => Domain::Anything,
            Thing::Cookie(_) => Domain::Cookie,
            Thing::Namespace | Thing::ServiceAccount | Thing::Label(_) => Domain::Name,
        };
        let id = ThingId::try_from(self.things.len()).unwrap_or(ThingId::MAX);
        self.things.push((thing.clone(), domain));
        self.ids.insert(thing, id);
        id
    }

    fn conditions(&mut self, rule: &'a RouteRule, entry: &'a RouteMatch) -> Result<Vec<Condition<'a>>, Unusable> {
        let mut found = Vec::new();
        let mut add = |reader: &mut Self, thing, test| found.push(Condition { of: reader.id(thing), test });
        if let Some(port) = rule.spec.port {
            add(self, Thing::Port, Test::Exact(port.to_string().into()));
        }
        if let Some(test) = entry.path.as_ref().map(|path| self.path(path)).transpose()?.flatten() {
            add(self, Thing::Path, test);
        }
        if let Some(grpc) = &entry.grpc {
            let test = call(grpc)?;
            add(self, Thing::Path, test);
            let content_type = self.pattern(GRPC)?;
            add(self, Thing::Header("content-type".into()), content_type);
        }
        if let Some(method) = &entry.method {
            add(self, Thing::Method, exact(method));
        }
        for header in &entry.headers {
            let test = self.value(header.kind, header.value.as_deref())?;
            add(self, Thing::Header(lower(&header.name)), test);
        }
        for param in &entry.query_params {
            let test = self.value(param.kind, param.value.as_deref())?;
            add(self, Thing::Query(&param.name), test);
        }
        for cookie in &entry.cookies {
            let test = self.value(cookie.kind, cookie.value.as_deref())?;
            add(self, Thing::Cookie(&cookie.name), test);
        }
        for (thing, test) in callers(rule, entry.source.as_ref()) {
            add(self, thing, test);
        }
        found.sort_by_key(|condition| condition.of);
        Ok(found)
    }

    /// None where every path will do.
    fn path(&mut self, path: &'a PathMatch) -> Result<Option<Test<'a>>, Unusable> {
        Ok(match path.kind {
            PathMatchType::Exact => Some(Test::Exact(normal(&path.value))),
            PathMatchType::RegularExpression => Some(self.pattern(&path.value)?),
            PathMatchType::PathPrefix => {
                let prefix = match normal(&path.value) {
                    Cow::Borrowed(prefix) => Cow::Borrowed(prefix.trim_end_matches('/')),
                    Cow::Owned(prefix) => Cow::Owned(prefix.trim_end_matches('/').to_owned()),
                };
                Some(prefix).filter(|prefix| !prefix.is_empty()).map(Test::Below)
            }
        })
    }

    fn value(&mut self, kind: ValueMatchType, value: Option<&'a str>) -> Result<Test<'a>, Unusable> {
        let value = value.unwrap_or_default();
        Ok(match kind {
            ValueMatchType::Exact => exact(value),
            ValueMatchType::Prefix => Test::Prefix(value),
            ValueMatchType::RegularExpression => self.pattern(value)?,
            ValueMatchType::Present => Test::Present,
            ValueMatchType::Absent => Test::Absent,
        })
    }

    fn pattern(&mut self, text: &'a str) -> Result<Test<'a>, Unusable> {
        let known = self.patterns.entry(text).or_insert_with(|| Pattern::new(text).map(Rc::new));
        known.as_ref().map(|pattern| Test::Pattern(Rc::clone(pattern))).ok_or(Unusable)
    }
}

/// A path as requests are compared with it; what has no such form was refused.
fn normal(path: &str) -> Cow<'_, str> {
    switchyard_proto::path::normal(path).unwrap_or(Cow::Borrowed(path))
}

/// The content types of gRPC.
const GRPC: &str = r"(?is-u:application/grpc(?:[+; \t].*)?)";

/// The path of a call: the method is what stands behind the last slash.
fn call(grpc: &GrpcMatch) -> Result<Test<'_>, Unusable> {
    let pattern = |text: String| Pattern::new(&text).map(|pattern| Test::Pattern(Rc::new(pattern))).ok_or(Unusable);
    let quoted = regex_syntax::escape;
    match (&grpc.service, &grpc.method) {
        (None, None) => pattern("/.+/[^/]+".to_owned()),
        (Some(service), Some(method)) => Ok(Test::Exact(format!("/{service}/{method}").into())),
        (Some(service), None) => pattern(format!("/{}/[^/]+", quoted(service))),
        (None, Some(method)) => pattern(format!("/.+/{}", quoted(method))),
    }
}

/// The namespace whose callers a consumer rule is for.
fn consumer(rule: &RouteRule) -> Option<&str> {
    let own = rule.metadata.namespace.as_deref().unwrap_or_default();
    rule.spec.service_namespace.as_deref().filter(|of| *of != own).map(|_| own)
}

fn exact(text: &str) -> Test<'_> {
    Test::Exact(text.into())
}

fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

/// Who may call: what the entry says, and of a consumer rule, the rule's own namespace.
fn callers<'a>(rule: &'a RouteRule, source: Option<&'a SourceMatch>) -> impl Iterator<Item = (Thing<'a>, Test<'a>)> {
    let namespaces = source.and_then(|source| source.namespace.as_deref()).into_iter().chain(consumer(rule));
    let account = source.and_then(|source| source.service_account.as_deref());
    let labels = source.into_iter().flat_map(|source| &source.labels);
    (namespaces.map(|namespace| (Thing::Namespace, exact(namespace))))
        .chain(account.map(|account| (Thing::ServiceAccount, exact(account))))
        .chain(labels.map(|(name, value)| (Thing::Label(name), exact(value))))
}
