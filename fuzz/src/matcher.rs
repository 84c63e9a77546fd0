// What the fuzz target `matcher` does with its input, and the test of its corpus too.
//
// The input is text: lines of words with a tab between two. `rule` begins an entry, `ask` a request; what cannot be read is left out.
//
//     rule  path=exact:/a  method=GET  port=80  header=x:exact:1  query=a:prefix:b  cookie=c:regex:v.*  grpc=shop.Cart/AddItem
//     rule  path=prefix:/a  header=x:present:  cookie=c:absent:  from=web/front/app=x
//     ask   GET  /a?a=b  x: 1  cookie: c=v1  from=web/front/app=x
//
// It panics where the index does not find what a walk over the entries finds, or a path that was brought into its normal form has another.

use http::Request;
use switchyard_agent::matching::{Entry, Index, View};
use switchyard_agent::message;
use switchyard_agent::table::Workload;
use switchyard_proto::v1;

/// Asks; how many requests and rules were read.
pub(crate) fn run(data: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(data);
    let words = |line: &'_ str, kind: &str| {
        let mut words = line.split('\t');
        (words.next() == Some(kind)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
    };
    let rules = text.lines().filter_map(|line| rule(&words(line, "rule")?));
    let entries: Vec<Entry> = (0..).zip(rules).filter_map(|(number, rule)| entry(number, rule)).collect();
    let index = Index::new(&entries);
    let mut asked = 0;
    for request in text.lines().filter_map(|line| words(line, "ask")) {
        asked += usize::from(ask(&entries, &index, &request).is_some());
    }
    (asked, entries.len())
}

fn entry(number: u32, rule: v1::Match) -> Option<Entry> {
    Entry::compile(&v1::Match { rule: number, ..rule }).ok().filter(|entry| entry.check().is_ok())
}

fn rule(words: &[String]) -> Option<v1::Match> {
    let mut rule = v1::Match::default();
    for word in words {
        let (what, value) = word.split_once('=')?;
        match what {
            "path" => rule.path = Some(matched(value)?),
            "method" => rule.method = value.to_owned(),
            "port" => rule.port = value.parse().ok()?,
            "header" => rule.headers.push(named(&value.to_ascii_lowercase())?),
            "query" => rule.query_params.push(named(value)?),
            "cookie" => rule.cookies.push(named(value)?),
            "grpc" => {
                let (service, method) = value.split_once('/')?;
                rule.grpc = Some(v1::GrpcMatch { service: service.to_owned(), method: method.to_owned() });
            }
            "from" => {
                let caller = caller(value);
                let Workload { namespace, service_account, labels, .. } = caller;
                rule.source = Some(v1::SourceMatch { namespace, service_account, labels });
            }
            _ => return None,
        }
    }
    Some(rule)
}

fn named(text: &str) -> Option<v1::NamedMatch> {
    let (name, value) = text.split_once(':')?;
    Some(v1::NamedMatch { name: name.to_owned(), r#match: Some(matched(value)?) })
}

fn matched(text: &str) -> Option<v1::StringMatch> {
    let (kind, value) = text.split_once(':')?;
    let kind = match kind {
        "exact" => v1::MatchType::Exact,
        "prefix" => v1::MatchType::Prefix,
        "regex" => v1::MatchType::RegularExpression,
        "present" => v1::MatchType::Present,
        "absent" => v1::MatchType::Absent,
        _ => return None,
    };
    Some(v1::StringMatch { r#type: kind.into(), value: value.to_owned() })
}

/// `namespace/account/label=value/...`.
fn caller(text: &str) -> Workload {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (namespace, service_account) = (next(), next());
    let labels = parts.filter_map(|label| label.split_once('='));
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Workload { namespace, service_account, labels, ..Workload::default() }
}

fn ask(entries: &[Entry], index: &Index, words: &[String]) -> Option<()> {
    let (method, target) = (words.first()?, words.get(1)?);
    let mut request = Request::builder().method(method.as_str()).uri(target.as_str()).header("host", "my-service.shop");
    let mut from = None;
    for word in &words[2..] {
        match word.strip_prefix("from=") {
            Some(text) => from = Some(caller(text)),
            None => {
                let (name, value) = word.split_once(": ")?;
                request = request.header(name, value);
            }
        }
    }
    let (mut parts, ()) = request.body(()).ok()?.into_parts();
    let facts = message::prepare(&mut parts).ok()?;
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().map(str::to_owned));
    let mut again = parts.clone();
    assert!(message::prepare(&mut again).is_ok(), "what was prepared can be prepared");
    assert_eq!(again.uri.path(), path, "the normal form of a normal form");
    let view = View {
        method: &parts.method,
        path: &path,
        query: query.as_deref(),
        headers: &parts.headers,
        port: 80,
        grpc: facts.grpc,
        caller: from.as_ref(),
    };
    let by_index = index.first(entries, &view).map(|entry| entry.rule);
    let by_walk = entries.iter().find(|entry| entry.holds(&view).is_ok()).map(|entry| entry.rule);
    assert_eq!(by_index, by_walk, "{method} {target}");
    Some(())
}
