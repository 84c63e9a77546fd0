//! How much header a request may have: 64 KiB and 128 fields, on HTTP/1.1 and HTTP/2; and what is added to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::{Request, Response};
use switchyard_tests::backend::{Backend, Server};
use switchyard_tests::client::{Body, Connection, full, get_request};
use switchyard_tests::manifests::{HOST, Manifests, retry};
use switchyard_tests::process::Switchyard;

/// A GET with so many fields (Host is one of them), the last of which is so long.
fn with_fields(count: usize, last: usize) -> Request<Body> {
    let mut request = get_request(HOST, "/");
    for number in 1..count {
        let value = if number == count - 1 { "x".repeat(last) } else { "1".to_owned() };
        request
            .headers_mut()
            .insert(http::HeaderName::try_from(format!("x-field-{number}")).unwrap(), value.parse().unwrap());
    }
    request
}

async fn connect(switchyard: &Switchyard, http2: bool) -> Connection {
    if http2 {
        Connection::http2(switchyard.http).await.unwrap()
    } else {
        Connection::http1(switchyard.http).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_to_the_limits_everything_passes_and_beyond_them_nothing() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    for http2 in [false, true] {
        // In HTTP/2 Host is in the target and no field; the caller has one less to give.
        for (count, last, passes) in [
            (128, 1, true),
            (2, 60_000, true),
            (130, 1, false),
            (500, 1, false),
            (2, 70_000, false),
            (100, 66_000, false),
            (2, 200_000, false),
        ] {
            let what = format!("{count} fields, the last of {last} bytes, HTTP/2: {http2}");
            let asked = instance.asked();
            let reply = connect(&switchyard, http2).await.ask(with_fields(count, last)).await;
            let reply = reply.unwrap_or_else(|error| panic!("no answer to {what}: {error}"));
            assert_eq!(reply.status.as_u16(), if passes { 200 } else { 431 }, "{what}");
            assert_eq!(reply.reason(), if passes { "" } else { "headers-too-large" }, "{what}");
            assert!(passes || !reply.body.is_empty(), "{what}");
            assert_eq!(instance.asked() - asked, u64::from(passes), "{what}");
        }
    }
    let seen = instance.seen();
    let fields = |n: usize| seen[n].headers.keys().filter(|name| name.as_str().starts_with("x-field-")).count();
    assert_eq!((fields(0), seen[1].headers["x-field-1"].len()), (127, 60_000), "all of it arrives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_refused_does_not_disturb_others_on_its_connection() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut connection = connect(&switchyard, true).await;
    for (count, last) in [(200, 1), (2, 200_000)] {
        assert_eq!(connection.ask(with_fields(count, last)).await.unwrap().status, 431);
        assert_eq!(connection.ask(get_request(HOST, "/")).await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_may_have_as_much_header_as_a_request() {
    // As much as the test's own client takes: many fields on HTTP/2, long ones on HTTP/1.
    for (from_http2, count, length) in [(false, 120, 20), (true, 90, 600), (false, 90, 600)] {
        let server = Server::start(move |_| {
            Box::pin(async move {
                let mut reply = Response::new(full("ok"));
                for number in 0..count {
                    let name = http::HeaderName::try_from(format!("x-field-{number}")).unwrap();
                    reply.headers_mut().insert(name, "x".repeat(length).parse().unwrap());
                }
                Ok(reply)
            })
        })
        .await;
        let instances = [("v1", server.address)];
        let manifests = if from_http2 { Manifests::of_http2(&instances) } else { Manifests::of(&instances) };
        let switchyard = Switchyard::run(manifests.path()).await;
        let reply = connect(&switchyard, count > 100).await.ask(get_request(HOST, "/")).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "ok"));
        assert_eq!(reply.header(&format!("x-field-{}", count - 1)).len(), length);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_made_where_they_are_missing_and_passed_on_where_they_are_there() {
    let instance = Backend::start("v1").await;
    let manifests = Manifests::of(&[("v1", instance.address)]);
    manifests.write("retry.yaml", &retry(""));
    let switchyard = Switchyard::run(manifests.path()).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    instance.fail_next(1);
    for (id, parent) in [(None, None), (Some("mine"), Some(trace)), (None, Some("00-odd"))] {
        let mut asked = get_request(HOST, "/");
        for (name, value) in [("x-request-id", id), ("traceparent", parent)] {
            if let Some(value) = value {
                asked.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        let reply = connect(&switchyard, false).await.ask(asked).await.unwrap();
        assert!(!reply.headers.contains_key("x-request-id"), "it is for the instance");
    }
    let seen: Vec<_> = instance
        .seen()
        .iter()
        .map(|seen| ["x-request-id", "traceparent"].map(|name| seen.headers[name].to_str().unwrap().to_owned()))
        .collect();
    let [first, again, given, replaced] = &seen[..] else { panic!("one was tried again: {seen:?}") };
    assert_eq!(first, again, "all tries of a request have the same");
    assert_eq!((first[0].len(), first[1].len()), (36, 55), "{first:?}");
    assert_eq!(given, &["mine".to_owned(), trace.to_owned()]);
    assert!(replaced[0].len() == 36 && replaced[1].len() == 55 && replaced[1] != trace, "{replaced:?}");
}
