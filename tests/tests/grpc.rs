//! gRPC through the agent, with a real client: every kind of call, trailers, and what counts as a failure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use http::Method;
use switchyard_tests::backend::Server;
use switchyard_tests::client::{Connection, full, request};
use switchyard_tests::grpc::{self, EchoBackend, Word, word};
use switchyard_tests::manifests::{HOST, Manifests, circuit, service};
use switchyard_tests::process::Switchyard;
use switchyard_tests::{in_time, wait_for};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

async fn with(instance: &EchoBackend) -> (Manifests, Switchyard) {
    let manifests = Manifests::default();
    manifests.write("service.yaml", &service("my-service", "grpc", &[("v1", instance.address)]));
    let switchyard = Switchyard::run(manifests.path()).await;
    (manifests, switchyard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_call_goes_through() {
    let instance = EchoBackend::start("v1").await;
    let (_manifests, switchyard) = with(&instance).await;
    let mut client = grpc::client(switchyard.http).await;

    let reply = client.once(word("hello")).await.unwrap();
    assert_eq!(reply.metadata().get("x-version").unwrap(), "v1");
    assert_eq!(reply.into_inner().text, "hello");

    let words = tokio_stream::iter(["to", "and", "fro"].map(word));
    assert_eq!(client.upload(words).await.unwrap().into_inner().text, "to and fro");

    let wanted = Word { text: "x".repeat(1000), times: 1000, status: 0 };
    let mut said = client.download(wanted).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(word) = said.message().await.unwrap() {
        assert_eq!(word.text.len(), 1000);
        count += 1;
    }
    assert_eq!(count, 1000);

    // Each word is answered before the next is said: nothing on the way waits for more.
    let (say, heard) = mpsc::channel(1);
    say.send(word("first")).await.unwrap();
    let mut replies = in_time("the head", client.chat(ReceiverStream::new(heard))).await.unwrap().into_inner();
    assert_eq!(in_time("the first word", replies.next()).await.unwrap().unwrap().text, "first");
    for number in 0..50 {
        let text = format!("word {number}");
        say.send(word(&text)).await.unwrap();
        assert_eq!(in_time("an answer", replies.next()).await.unwrap().unwrap().text, text);
    }
    drop(say);
    assert!(in_time("the end", replies.next()).await.is_none());
    assert_eq!(instance.calls(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_arrives_with_its_message_and_its_trailers() {
    let instance = EchoBackend::start("v1").await;
    let (_manifests, switchyard) = with(&instance).await;
    let mut client = grpc::client(switchyard.http).await;
    let error = client.once(Word { status: 5, ..word("") }).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "as it was asked to"));
    assert_eq!(error.metadata().get("x-trailer").unwrap(), "kept");

    let mut said = client.download(Word { times: 2, status: 10, ..word("x") }).await.unwrap().into_inner();
    assert!(said.message().await.unwrap().is_some() && said.message().await.unwrap().is_some());
    let error = said.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "a status after messages is in the trailers");
    assert_eq!(error.metadata().get("x-trailer").unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_counts_as_a_failure_wherever_it_is_said() {
    for after_messages in [false, true] {
        let instance = EchoBackend::start("v1").await;
        let (manifests, switchyard) = with(&instance).await;
        manifests.write("circuit.yaml", &circuit("  failureThreshold: 5\n"));
        switchyard.circuit_is(instance.address, "closed").await;
        let mut client = grpc::client(switchyard.http).await;
        for _ in 0..5 {
            let asked = Word { times: u32::from(after_messages), status: Code::Unavailable.into(), ..word("x") };
            let error = match client.download(asked).await {
                Err(error) => error,
                Ok(said) => said.into_inner().collect::<Vec<_>>().await.pop().unwrap().unwrap_err(),
            };
            assert_eq!((error.code(), error.message()), (Code::Unavailable, "as it was asked to"));
        }
        switchyard.circuit_is(instance.address, "open").await;
        let error = client.once(word("x")).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "circuit-open"), "the agent's own word");
        assert_eq!(instance.calls(), 5);
        let labels = [("class", "5xx")];
        wait_for("the failures are counted", async || {
            switchyard.metric("switchyard_requests_total", &labels).await >= 5.0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_is_the_callers_own_fault_opens_nothing() {
    let instance = EchoBackend::start("v1").await;
    let (manifests, switchyard) = with(&instance).await;
    manifests.write("circuit.yaml", &circuit("  failureThreshold: 3\n"));
    switchyard.circuit_is(instance.address, "closed").await;
    let mut client = grpc::client(switchyard.http).await;
    for _ in 0..10 {
        let error = client.once(Word { status: Code::InvalidArgument.into(), ..word("") }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    assert_eq!(switchyard.circuit(instance.address).await.as_deref(), Some("closed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_its_caller_gives_up_is_cancelled_at_the_instance() {
    let instance = EchoBackend::start("v1").await;
    let (_manifests, switchyard) = with(&instance).await;
    let mut client = grpc::client(switchyard.http).await;
    let endless = Word { times: u32::MAX, ..word("x") };
    let mut said = client.download(endless).await.unwrap().into_inner();
    assert!(said.message().await.unwrap().is_some());
    assert_eq!(instance.downloads_ended(), 0);
    drop(said);
    wait_for("the instance stops", async || instance.downloads_ended() == 1).await;
    assert_eq!(client.once(word("next")).await.unwrap().into_inner().text, "next", "the connection goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_the_caller_ends_the_call() {
    // tonic's own client and server keep the deadline themselves; these do not, so only the agent is left to do it.
    let silent = Server::start(|_| Box::pin(std::future::pending())).await;
    let manifests = Manifests::default();
    manifests.write("service.yaml", &service("my-service", "grpc", &[("v1", silent.address)]));
    let switchyard = Switchyard::run(manifests.path()).await;
    let mut call = request(Method::POST, HOST, "/echo.v1.Echo/Once", full(vec![0; 5]));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "300m")] {
        call.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut connection = Connection::http2(switchyard.http).await.unwrap();
    let reply = in_time("the deadline", connection.ask(call)).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("grpc-status")), (200, "4"), "as gRPC says it: DEADLINE_EXCEEDED");
    assert_eq!(reply.header("grpc-message"), "upstream-timeout");
}
