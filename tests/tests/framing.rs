//! Requests and replies as bytes: nothing that two parsers could read differently passes, and what passes keeps its meaning
//! (RFC 9110, 9112, 9113).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use switchyard_tests::client::{Connection, empty, full, get_request, request};
use switchyard_tests::in_time;
use switchyard_tests::manifests::{HOST, Manifests};
use switchyard_tests::process::Switchyard;
use switchyard_tests::raw::{Message, RawServer, Strict, Wire, field};
use tokio::time::timeout;

async fn before(address: std::net::SocketAddr) -> (Manifests, Switchyard) {
    let manifests = Manifests::of(&[("v1", address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard)
}

/// A second request, in what would be the body or the tail of the first for whoever reads it differently.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: my-service.shop\r\n\r\n";

/// What the table below expects of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is answered 4xx or 5xx with a reason, the connection closes, and nothing reaches the instance.
    Refused,
    /// It reaches the instance as this one request: `METHOD target`, and the body. What came behind it does not.
    Arrives(&'static str, &'static str),
}

use Fate::{Arrives, Refused};

#[rustfmt::skip]
const TABLE: &[(&str, &str, Fate)] = &[
    ("plain", "GET / HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /", "")),
    ("with a length", "POST /x HTTP/1.1\r\nhost: {host}\r\ncontent-length: 3\r\n\r\nabc", Arrives("POST /x", "abc")),
    ("chunked", "POST /x HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Arrives("POST /x", "abc")),
    ("chunked in capitals", "POST /x HTTP/1.1\r\nhost: {host}\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Arrives("POST /x", "abc")),
    ("a GET with a body", "GET /x HTTP/1.1\r\nhost: {host}\r\ncontent-length: 3\r\n\r\nabc", Arrives("GET /x", "abc")),
    ("a GET in chunks", "GET /x HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Arrives("GET /x", "abc")),
    ("two lengths that are equal", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", Arrives("POST /", "abc")),
    ("a length far into its line", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {spaces}3\r\n\r\nabc", Refused),
    ("a bare LF in a chunk extension", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\nabc\r\n0\r\n\r\n{smuggled}", Refused),
    ("a bare LF in a chunk extension that goes on", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;a=\nb\r\nabc\r\n0\r\n\r\n{smuggled}", Refused),
    ("NUL in a chunk extension", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;a=\0b\r\nabc\r\n0\r\n\r\n{smuggled}", Refused),
    ("a bare CR in a chunk extension", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;a=\rb\r\nabc\r\n0\r\n\r\n{smuggled}", Refused),
    ("a chunk extension beyond all bounds", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;{spaces}\r\nabc\r\n0\r\n\r\n{smuggled}", Refused),
    ("a bare LF in a trailer", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\nz: 1\r\n\r\n{smuggled}", Refused),
    ("a bare LF behind the last chunk", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\n{smuggled}", Refused),
    ("a Host that is no address", "GET / HTTP/1.1\r\nhost: [zz]\r\n\r\n", Refused),
    ("a Host that is an empty address", "GET / HTTP/1.1\r\nhost: []\r\n\r\n", Refused),
    ("a Host with a percent sign", "GET / HTTP/1.1\r\nhost: {host}%\r\n\r\n", Refused),
    ("a Host with an encoded line end", "GET / HTTP/1.1\r\nhost: {host}%0d%0a\r\n\r\n", Refused),
    ("a Host with a port beyond all", "GET / HTTP/1.1\r\nhost: {host}:65536\r\n\r\n", Refused),
    ("an absolute target without a path", "GET http://{host}?y HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /?y", "")),
    ("an absolute target with its scheme's port", "GET https://{host}:443/ HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /", "")),
    ("an absolute target with another port", "GET https://{host}:80/ HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a target that is a query", "GET ?x HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("OPTIONS that has come far enough", "OPTIONS / HTTP/1.1\r\nhost: {host}\r\nmax-forwards: 0\r\n\r\n", Refused),
    ("OPTIONS that goes further", "OPTIONS / HTTP/1.1\r\nhost: {host}\r\nmax-forwards: 1\r\n\r\n", Arrives("OPTIONS /", "")),
    ("Connection nominates Content-Encoding", "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: content-encoding\r\n\r\n", Refused),
    ("Connection nominates Authorization", "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: Authorization\r\n\r\n", Refused),
    ("an expectation from HTTP/1.0", "POST /x HTTP/1.0\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc", Arrives("POST /x", "abc")),
    ("a chunk extension", "POST /x HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", Arrives("POST /x", "abc")),
    ("the same length twice in one field", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 3, 3\r\n\r\nabc{smuggled}", Refused),
    ("length and chunked", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}", Arrives("POST /", "")),
    ("chunked and length", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{smuggled}", Arrives("POST /", "")),
    ("two lengths that differ", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\ncontent-length: 49\r\n\r\n{smuggled}", Refused),
    ("two lengths in one field", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0, 49\r\n\r\n{smuggled}", Refused),
    ("a length with a sign", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: +3\r\n\r\nabc", Refused),
    ("a negative length", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: -1\r\n\r\nabc", Refused),
    ("a length in hexadecimal", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0x3\r\n\r\nabc", Refused),
    ("a length that is empty", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: \r\n\r\nabc", Refused),
    ("a length beyond all numbers", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 99999999999999999999999\r\n\r\nabc", Refused),
    ("chunked misspelt", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked with a tail", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked;x\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked in quotes", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked not last", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked twice", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked in two fields", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("another coding before chunked", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("identity", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: identity\r\ncontent-length: 3\r\n\r\nabc", Refused),
    ("a vertical tab before chunked", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("a space before the colon", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("a space before the colon of a length", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length : 49\r\n\r\n{smuggled}", Refused),
    ("a tab before the colon", "GET / HTTP/1.1\r\nhost: {host}\r\nx\t: y\r\n\r\n", Refused),
    ("a folded field", "GET / HTTP/1.1\r\nhost: {host}\r\nx: a\r\n b\r\n\r\n", Refused),
    ("a folded coding", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{smuggled}", Refused),
    ("a space before the first field", "GET / HTTP/1.1\r\n host: {host}\r\n\r\n", Refused),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nhost: {host}\r\nx: a\rb: c\r\n\r\n", Refused),
    ("a bare CR at a line's end", "GET / HTTP/1.1\r\nhost: {host}\r\nx: a\ry: b\r\n\r\n", Refused),
    ("a bare LF at a line's end", "POST / HTTP/1.1\r\nhost: {host}\r\nx: a\ncontent-length: 49\r\n\r\n{smuggled}", Refused),
    ("a bare LF after the request line", "GET / HTTP/1.1\nhost: {host}\r\n\r\n", Refused),
    ("a bare LF at the head's end", "GET / HTTP/1.1\r\nhost: {host}\r\n\n{smuggled}", Refused),
    ("bare LFs all through", "GET / HTTP/1.1\nhost: {host}\n\n", Refused),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: {host}\r\nx: a\0b\r\n\r\n", Refused),
    ("NUL in a name", "GET / HTTP/1.1\r\nhost: {host}\r\nx\0y: a\r\n\r\n", Refused),
    ("a control character in a value", "GET / HTTP/1.1\r\nhost: {host}\r\nx: a\u{1}b\r\n\r\n", Refused),
    ("a field with no name", "GET / HTTP/1.1\r\nhost: {host}\r\n: a\r\n\r\n", Refused),
    ("a field with no colon", "GET / HTTP/1.1\r\nhost: {host}\r\nxy\r\n\r\n", Refused),
    ("two Hosts", "GET / HTTP/1.1\r\nhost: {host}\r\nhost: {host}\r\n\r\n", Refused),
    ("two Hosts that differ", "GET / HTTP/1.1\r\nhost: {host}\r\nhost: other.shop\r\n\r\n", Refused),
    ("two Hosts in one", "GET / HTTP/1.1\r\nhost: {host}, other.shop\r\n\r\n", Refused),
    ("no Host", "GET / HTTP/1.1\r\n\r\n", Refused),
    ("an absolute target and no Host", "GET http://{host}/ HTTP/1.1\r\n\r\n", Refused),
    ("an empty Host", "GET / HTTP/1.1\r\nhost: \r\n\r\n", Refused),
    ("a Host with a user", "GET / HTTP/1.1\r\nhost: me@{host}\r\n\r\n", Refused),
    ("a Host with a path", "GET / HTTP/1.1\r\nhost: {host}/x\r\n\r\n", Refused),
    ("a Host with a space", "GET / HTTP/1.1\r\nhost: {host} other\r\n\r\n", Refused),
    ("a Host with a port that is none", "GET / HTTP/1.1\r\nhost: {host}:80x\r\n\r\n", Refused),
    ("an absolute target", "GET http://{host}/x?y HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /x?y", "")),
    ("a path that is spelt oddly", "GET /a/%2e%2E/%62//c%2fd\\e/./?x=%61 HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /b/c%2Fd/e/?x=%61", "")),
    ("a path above the root", "GET /a/../../b HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("an encoded path above the root", "GET /%2e%2e/b HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a path with half an encoding", "GET /a%4 HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a path with an encoded NUL", "GET /a%00 HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("the target of OPTIONS", "OPTIONS * HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("OPTIONS *", "")),
    ("an absolute target against Host", "GET http://{host}/ HTTP/1.1\r\nhost: other.shop\r\n\r\n", Refused),
    ("an absolute target with a user", "GET http://me@{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("an absolute target of another scheme", "GET ftp://{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a target that is an authority", "GET {host}:80 HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a target that is no path", "GET x HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a target with a fragment", "GET /x#y HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("GET /x", "")),
    ("CONNECT", "CONNECT {host}:80 HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("OPTIONS for everything", "OPTIONS * HTTP/1.1\r\nhost: {host}\r\n\r\n", Arrives("OPTIONS *", "")),
    ("GET for everything", "GET * HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("two spaces in the request line", "GET  / HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a tab in the request line", "GET\t/ HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a space in the target", "GET /a b HTTP/1.1\r\nhost: {host}\r\n\r\n", Refused),
    ("a version that is none", "GET / HTTP/1.2\r\nhost: {host}\r\n\r\n", Refused),
    ("HTTP/0.9", "GET /\r\n\r\n", Refused),
    ("a chunk whose size is none", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\nx\r\nabc\r\n0\r\n\r\n", Refused),
    ("a chunk whose size has a prefix", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", Refused),
    ("a chunk whose size overflows", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff3\r\nabc\r\n0\r\n\r\n", Refused),
    ("a chunk that is longer than it says", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", Refused),
    ("a bare LF after a chunk size", "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", Refused),
    ("Connection nominates Host", "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: host\r\n\r\n", Refused),
    ("Connection nominates Content-Length", "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 49\r\nconnection: content-length\r\n\r\n{smuggled}", Refused),
    ("Connection nominates Transfer-Encoding", "POST /x HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\nconnection: transfer-encoding\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Arrives("POST /x", "abc")),
];

/// How long a peer is given that may be waiting for more.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_refused_or_arrives_as_exactly_one() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let mut wrong = Vec::new();
    for (what, bytes, fate) in TABLE {
        let bytes =
            bytes.replace("{host}", HOST).replace("{smuggled}", SMUGGLED).replace("{spaces}", &" ".repeat(2000));
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(&bytes).await;
        // An agent that waits for more gets the end instead.
        let reply = timeout(SOON, wire.reply()).await.unwrap_or_default();
        let refused = reply.starts_with("HTTP/1.1 4") || reply.starts_with("HTTP/1.1 5");
        let refused = refused && field(&reply, "x-switchyard-reason").is_some();
        let refused = refused && timeout(SOON, wire.closed()).await.is_ok();
        // A second reply would be to a second request.
        wire.end().await;
        let rest = wire.rest().await;
        let seen = instance.seen();
        // A body that turns out to be broken reaches the instance as a request that is cut: no request at all.
        let arrived: Vec<&Message> = seen.iter().filter_map(|message| message.as_ref().ok()).collect();
        let odd = seen.iter().filter_map(|message| message.as_ref().err()).find(|why| !why.contains("cut"));
        let as_expected = match fate {
            Refused => refused && arrived.is_empty(),
            Arrives(line, body) => {
                (reply.starts_with("HTTP/1.1 200") || reply.starts_with("HTTP/1.0 200"))
                    && arrived.len() == 1
                    && (arrived[0].line.as_str(), arrived[0].body.as_str()) == (*line, *body)
            }
        };
        if !as_expected || odd.is_some() || !rest.is_empty() {
            wrong.push(format!("{what} ({fate:?}): answered {reply:?}, then {rest:?}; the instance saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), TABLE.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_connection_nominates_and_hop_by_hop_fields_go_no_further() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!(
        "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: keep-alive, x-secret\r\nx-secret: 1\r\nkeep-alive: timeout=5\r\n\
         proxy-connection: keep-alive\r\nte: trailers, deflate\r\nupgrade: h2c\r\nx-kept: yes\r\n\r\n"
    ))
    .await;
    assert!(wire.reply().await.starts_with("HTTP/1.1 200"));
    let seen = instance.seen().remove(0).unwrap();
    let names: Vec<_> = seen.fields.iter().map(|(name, _)| name.as_str()).collect();
    for gone in ["x-secret", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(!names.contains(&gone), "{gone} in {names:?}");
    }
    assert!(seen.fields.contains(&("x-kept".to_owned(), "yes".to_owned())));
    assert!(seen.fields.iter().all(|(name, value)| name != "te" || value == "trailers"), "{:?}", seen.fields);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_at_once_are_answered_one_after_the_other() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    let one = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    wire.send([one("/1", "GET / HTTP/1.1\r\n\r\n"), one("/2", ""), one("/3", "abc")].concat()).await;
    for _ in 0..3 {
        assert!(wire.reply().await.starts_with("HTTP/1.1 200"));
    }
    let seen: Vec<_> = instance.seen().into_iter().map(|message| message.unwrap().line).collect();
    assert_eq!(seen, ["POST /1", "POST /2", "POST /3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_cut_arrives_cut() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhello",
    ] {
        let server = RawServer::start(move |mut wire| async move {
            wire.reply().await;
            wire.send(bytes).await;
        });
        let (_manifests, switchyard) = before(server.address).await;
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        let reply = wire.rest().await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply:?}");
        assert!(!reply.ends_with("0\r\n\r\n"), "it must not look whole: {reply:?}");
        assert!(!reply.to_lowercase().contains("content-length: 5"), "it must not look whole: {reply:?}");

        let mut connection = Connection::http2(switchyard.http).await.unwrap();
        let reply = connection.send(get_request(HOST, "/")).await.unwrap();
        let read = in_time("the end of a cut reply", reply.into_body().collect()).await;
        assert!(read.is_err(), "it must not look whole on HTTP/2: {:?}", read.unwrap().to_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_no_end_where_the_connections_end_is_one() {
    for (bytes, reset) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\nhello", true),
        ("HTTP/1.0 200 OK\r\n\r\nhello", true),
    ] {
        let server = RawServer::start(move |mut wire| async move {
            wire.until("\r\n\r\n").await;
            wire.send(bytes).await;
            // The caller has seen what came so far.
            wire.until("go on").await;
            if reset {
                wire.reset();
            }
        });
        let (_manifests, switchyard) = before(server.address).await;
        for version in ["HTTP/1.0", "HTTP/1.1"] {
            let mut wire = Wire::connect(switchyard.http).await;
            wire.send(format!("PUT / {version}\r\nhost: {HOST}\r\ncontent-length: 5\r\n\r\n")).await;
            let head = wire.until("hello").await;
            assert!(head.starts_with(&format!("{version} 200")), "{bytes:?} became {head:?}");
            wire.send("go on").await;
            let (rest, was_reset) = wire.ending().await;
            let looks_whole = if version == "HTTP/1.0" { !was_reset } else { rest.ends_with("0\r\n\r\n") };
            assert!(!looks_whole, "{bytes:?} to {version} ended with {rest:?}");
        }
        let mut connection = Connection::http2(switchyard.http).await.unwrap();
        let asked = request(http::Method::PUT, HOST, "/", full("go on"));
        let whole = in_time("the end of a cut reply", connection.ask(asked)).await;
        assert!(!whole.is_ok_and(|reply| reply.status == 200), "{bytes:?} must not look whole on HTTP/2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_ends_with_its_connection_arrives_whole() {
    let server = RawServer::start(|mut wire| async move {
        wire.reply().await;
        wire.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
    });
    let (_manifests, switchyard) = before(server.address).await;
    for http2 in [false, true] {
        let mut connection = match http2 {
            true => Connection::http2(switchyard.http).await.unwrap(),
            false => Connection::http1(switchyard.http).await.unwrap(),
        };
        assert_eq!(connection.ask(get_request(HOST, "/")).await.unwrap().text(), "hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_from_an_instance_is_a_bad_gateway_and_not_passed_on() {
    for bytes in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/1.1 999999 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nab",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "",
    ] {
        let server = RawServer::start(move |mut wire| async move {
            wire.reply().await;
            wire.send(bytes).await;
        });
        let (_manifests, switchyard) = before(server.address).await;
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        let reply = wire.reply().await;
        assert!(reply.starts_with("HTTP/1.1 502"), "{bytes:?} became {reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_a_reply_is_is_said_once_and_rightly() {
    for (bytes, body) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", "hello"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", "hello"),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", ""),
    ] {
        let server = RawServer::answering(bytes);
        let (_manifests, switchyard) = before(server.address).await;
        for http2 in [false, true] {
            let mut connection = match http2 {
                true => Connection::http2(switchyard.http).await.unwrap(),
                false => Connection::http1(switchyard.http).await.unwrap(),
            };
            let reply = connection.ask(get_request(HOST, "/")).await.unwrap();
            assert_eq!(reply.text(), body, "{bytes:?}, HTTP/2: {http2}");
            let lengths: Vec<_> = reply.headers.get_all("content-length").iter().collect();
            let chunked = bytes.contains("chunked") || body.is_empty();
            assert_eq!(lengths, if chunked { vec![] } else { vec!["5"] }, "{bytes:?}, HTTP/2: {http2}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_arrives_even_if_the_body_is_broken_from_the_start() {
    let server = RawServer::answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n");
    let (_manifests, switchyard) = before(server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    let reply = wire.rest().await;
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\n") && !reply.contains("0\r\n\r\n"),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_an_instance_resets_without_an_error_is_cut_too() {
    // HEADERS with `:status: 200`, DATA, and RST_STREAM(NO_ERROR): the end of the stream is never said.
    let frames = [
        &[0, 0, 0, 4, 0, 0, 0, 0, 0][..],
        &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88],
        b"\0\0\x05\0\0\0\0\0\x01hello",
        &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0],
    ]
    .concat();
    let server = RawServer::start(move |mut wire| {
        let frames = frames.clone();
        async move {
            // HEADERS of the first stream, which end the head and the stream.
            wire.until("\x01\x05\0\0\0\x01").await;
            wire.send(frames).await;
            wire.closed().await;
        }
    });
    let manifests = Manifests::of_http2(&[("v1", server.address)]);
    for http2 in [false, true] {
        // The instance knows the first stream of a connection only.
        let switchyard = Switchyard::run(manifests.path()).await;
        let mut connection = match http2 {
            true => Connection::http2(switchyard.http).await.unwrap(),
            false => Connection::http1(switchyard.http).await.unwrap(),
        };
        let read = in_time("the end of a cut reply", connection.ask(get_request(HOST, "/"))).await;
        assert!(read.is_err(), "it must not look whole, HTTP/2: {http2}: {read:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_a_request_that_is_refused_is_read() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let good = format!("GET /good HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let bad = format!("GET /bad HTTP/1.1\r\nhost: {HOST}\r\nx: y\n\r\n");
    // Wherever the bytes are cut.
    let bytes = [&good, &bad, &good].map(String::as_str).concat();
    for cut in (0..bytes.len()).step_by(5) {
        let mut wire = Wire::connect(switchyard.http).await;
        wire.send(&bytes[..cut]).await;
        // What was sent is read before the rest is.
        if cut > good.len() {
            assert!(wire.reply().await.starts_with("HTTP/1.1 200"));
        }
        wire.send(&bytes[cut..]).await;
        if cut <= good.len() {
            assert!(wire.reply().await.starts_with("HTTP/1.1 200"));
        }
        let refused = wire.reply().await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{cut}: {refused:?}");
        assert_eq!(field(&refused, "x-switchyard-reason"), Some("bad-request"));
        assert_eq!(wire.rest().await, "");
        let seen: Vec<_> = instance.seen().into_iter().map(|message| message.unwrap().line).collect();
        assert_eq!(seen, ["GET /good"], "cut at {cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_is_said_once_on_http2_too() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let mut connection = Connection::http2(switchyard.http).await.unwrap();
    let mut asked = request(http::Method::POST, HOST, "/", full("abc"));
    for _ in 0..2 {
        asked.headers_mut().append("content-length", "3".parse().unwrap());
    }
    let reply = connection.ask(asked).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason()), (400, "bad-request"));
    assert!(instance.seen().is_empty());

    // The same of gRPC is said as gRPC is.
    let mut asked = request(http::Method::POST, HOST, "/", full("abc"));
    for (name, value) in [("content-length", "3"), ("content-length", "3"), ("content-type", "application/grpc")] {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let reply = connection.ask(asked).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("grpc-status")), (200, "13"));
    assert_eq!(reply.header("grpc-message"), "bad-request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_get_arrives_from_http2_though_nobody_said_how_long_it_is() {
    let instance = Strict::start();
    let (_manifests, switchyard) = before(instance.server.address).await;
    let mut connection = Connection::http2(switchyard.http).await.unwrap();
    let frames = ["ab", "c"].map(|part| Ok::<_, std::io::Error>(Frame::data(bytes::Bytes::from(part))));
    let body = StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
    assert_eq!(connection.ask(request(http::Method::GET, HOST, "/x", body)).await.unwrap().status, 200);
    assert_eq!(instance.seen().remove(0).unwrap().body, "abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_is_reset_is_as_stale_as_one_that_is_closed() {
    let connections = std::sync::atomic::AtomicU32::new(0);
    let server = RawServer::start(move |mut wire| {
        let first = connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        async move {
            wire.reply().await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            wire.reply().await;
            if first {
                wire.reset();
            }
        }
    });
    let (_manifests, switchyard) = before(server.address).await;
    let mut connection = Connection::http1(switchyard.http).await.unwrap();
    for _ in 0..2 {
        assert_eq!(connection.ask(get_request(HOST, "/")).await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_is_noticed_though_its_next_request_waits() {
    let (noticed, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let server = RawServer::start(move |mut wire| {
        let noticed = noticed.clone();
        async move {
            wire.reply().await;
            noticed.send("asked").unwrap();
            wire.closed().await;
            noticed.send("closed").unwrap();
        }
    });
    let (_manifests, switchyard) = before(server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET /1 HTTP/1.1\r\nhost: {HOST}\r\n\r\nGET /2 HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    assert_eq!(in_time("the first request", heard.recv()).await, Some("asked"));
    drop(wire);
    assert_eq!(in_time("that it is given up", heard.recv()).await, Some("closed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_without_a_body_have_none_and_the_connection_goes_on() {
    for (method, reply, kept) in [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\netag: \"x\"\r\n\r\n", Some("1000")),
        ("GET", "HTTP/1.1 204 No Content\r\netag: \"x\"\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 1000\r\n\r\n", None),
    ] {
        let server = RawServer::answering(reply);
        let (_manifests, switchyard) = before(server.address).await;
        let mut wire = Wire::connect(switchyard.http).await;
        let first_line = reply.split("\r\n").next().unwrap();
        // Three times on one connection: a body that is not there would be taken for the next reply.
        for _ in 0..3 {
            wire.send(format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
            let head = wire.until("\r\n\r\n").await.to_lowercase();
            assert!(head.starts_with(&first_line.to_lowercase()), "{head:?}");
            assert_eq!(field(&head, "etag"), Some("\"x\""));
            assert_eq!(field(&head, "transfer-encoding"), None, "{head:?}");
            // A 304 may leave out how long the body would be (RFC 9110 section 8.6), and does; HEAD is asked for it.
            assert_eq!(field(&head, "content-length"), kept, "{head:?}");
        }
        let mut connection = Connection::http2(switchyard.http).await.unwrap();
        for _ in 0..3 {
            let reply = connection.ask(request(method.parse().unwrap(), HOST, "/", empty())).await.unwrap();
            assert!(reply.body.is_empty());
            assert_eq!(reply.header("etag"), "\"x\"");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_replies_come_before_the_final_one_and_do_not_take_its_place() {
    let server = RawServer::answering(
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    );
    let (_manifests, switchyard) = before(server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    for _ in 0..2 {
        wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
        let hints = wire.reply().await;
        assert!(hints.starts_with("HTTP/1.1 103") && hints.to_lowercase().contains("link: </x>"), "{hints:?}");
        let processing = wire.reply().await;
        assert!(processing.starts_with("HTTP/1.1 102"), "{processing:?}");
        let reply = wire.reply().await;
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nok"), "{reply:?}");
    }
    let mut connection = Connection::http2(switchyard.http).await.unwrap();
    assert_eq!(connection.ask(get_request(HOST, "/")).await.unwrap().text(), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_arrive_as_trailers() {
    let server = RawServer::answering(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n",
    );
    let (_manifests, switchyard) = before(server.address).await;
    let mut asking = get_request(HOST, "/");
    asking.headers_mut().insert("te", "trailers".parse().unwrap());
    let reply = Connection::http2(switchyard.http).await.unwrap().ask(asking).await.unwrap();
    assert_eq!((reply.text().as_str(), reply.trailers.get("x-sum").unwrap().to_str().unwrap()), ("ok", "42"));

    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nte: trailers\r\nconnection: te\r\n\r\n")).await;
    let head = wire.until("\r\n\r\n").await.to_lowercase();
    assert_eq!(field(&head, "trailer"), Some("x-sum"), "{head:?}");
    assert_eq!(wire.until("\r\n\r\n").await, "2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_into_a_head_does_not_come_in_trailers() {
    let server = RawServer::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
         x-sum: 42\r\ncontent-length: 9\r\ntransfer-encoding: gzip\r\nconnection: close\r\nkeep-alive: 1\r\nset-cookie: a=b\r\n\r\n",
    );
    let (_manifests, switchyard) = before(server.address).await;
    let reply = Connection::http2(switchyard.http).await.unwrap().ask(get_request(HOST, "/")).await.unwrap();
    let names: Vec<_> = reply.trailers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["x-sum"]);

    let instance = switchyard_tests::backend::Backend::start("v1").await;
    let (_manifests, switchyard) = before(instance.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\ntrailer: x-sum, host, connection, x-more\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\
         x-sum: 42\r\nhost: other.shop\r\nconnection: x-sum\r\nx-undeclared: 1\r\n\r\n"
    ))
    .await;
    assert!(wire.reply().await.starts_with("HTTP/1.1 200"));
    let trailers = instance.seen().remove(0).trailers.unwrap();
    assert_eq!(trailers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-sum"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_expects_a_100_gets_the_instances_and_not_ours() {
    let server = RawServer::start(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        if field(&head, "expect") == Some("100-continue") {
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        let body = wire.exactly(5).await;
        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    });
    let (_manifests, switchyard) = before(server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")).await;
    assert!(wire.reply().await.starts_with("HTTP/1.1 100"), "before the body is sent");
    wire.send("hello").await;
    assert!(wire.reply().await.ends_with("\r\n\r\nhello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_expects_a_100_and_is_refused_is_not_asked_for_its_body() {
    let server = RawServer::start(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    });
    let (_manifests, switchyard) = before(server.address).await;
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(format!("PUT / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")).await;
    let reply = wire.reply().await;
    assert!(reply.starts_with("HTTP/1.1 417"), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_makes_a_tunnel_and_a_refused_one_a_reply() {
    let server = RawServer::start(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        if !head.starts_with("get /ws ") || field(&head, "upgrade") != Some("websocket") {
            wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno").await;
            return;
        }
        // The first bytes come right behind the head.
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello").await;
        loop {
            let byte = wire.exactly(1).await;
            if byte.is_empty() {
                return;
            }
            wire.send(byte.to_uppercase()).await;
        }
    });
    let (_manifests, switchyard) = before(server.address).await;
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n"
        )
    };
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(ask("/ws")).await;
    let head = wire.until("\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head:?}");
    assert_eq!((field(&head, "upgrade"), field(&head, "sec-websocket-accept")), (Some("websocket"), Some("x")));
    assert_eq!(wire.exactly(5).await, "hello");
    for word in ["abc", "GET / HTTP/1.1\r\n\r\n", "\0\r\n"] {
        wire.send(word).await;
        assert_eq!(wire.exactly(word.len()).await, word.to_uppercase());
    }
    wire.end().await;
    assert_eq!(wire.rest().await, "", "one side's end is the other's");

    // What is spoken then may come at once, whatever it is.
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(ask("/ws") + "early\nwords").await;
    assert!(wire.until("\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    assert_eq!(wire.exactly(16).await, "helloEARLY\nWORDS");

    // Where it is refused, nobody has looked at what came behind.
    let mut wire = Wire::connect(switchyard.http).await;
    wire.send(ask("/other") + "GET /ws HTTP/1.1\nhost: x\r\n\r\n").await;
    assert!(wire.reply().await.starts_with("HTTP/1.1 400"));
    assert_eq!(wire.rest().await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_pass_between_versions_of_http_as_they_are() {
    let instance = switchyard_tests::backend::Backend::start("v1").await;
    let instances = [("v1", instance.address)];
    for manifests in [Manifests::of(&instances), Manifests::of_http2(&instances)] {
        let switchyard = Switchyard::run(manifests.path()).await;
        for http2 in [false, true] {
            let mut connection = match http2 {
                true => Connection::http2(switchyard.http).await.unwrap(),
                false => Connection::http1(switchyard.http).await.unwrap(),
            };
            for length in [0, 1, 70_000] {
                let body = vec![b'x'; length];
                let asked = request(http::Method::PUT, HOST, "/path?query=1", full(body.clone()));
                let reply = connection.ask(asked).await.unwrap();
                assert!(reply.status == 200 && reply.body == body, "{length} bytes, HTTP/2: {http2}");
            }
            let seen = instance.seen().pop().unwrap();
            assert!(seen.target.ends_with("/path?query=1"), "{}", seen.target);
        }
    }
}
