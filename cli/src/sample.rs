//! `switchyard sample`: a small service to try things with. It says who it is, and can be told to fail, to be slow or to be
//! down, at the start and while it runs.
//!
//! Failures are spread evenly over the requests, not at random: with `--fail 20%` it is every fifth. So what you see is what
//! you set, also over a handful of requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use anyhow::Context;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use switchyard_controller::console;
use switchyard_crds::values::{Duration, Percent};
use tokio::net::TcpListener;

use crate::output;

/// Where the knobs are read and turned.
const KNOBS_PATH: &str = "/_sample";

/// The header field in which an agent says which try of a request this is.
const ATTEMPT: &str = "x-switchyard-attempt";

/// A small service to try things with.
///
/// It answers every path with JSON that says who it is: service, version and instance, and which try of the request it saw.
/// Speaks HTTP/1.1 and cleartext HTTP/2.
#[derive(clap::Args, Debug)]
#[command(disable_version_flag = true)]
#[command(after_help = "\
Change it while it runs:
  curl -X POST 'http://127.0.0.1:9001/_sample?fail=50%&delay=200ms'
  curl -X POST 'http://127.0.0.1:9001/_sample?down=true'    (breaks every connection off)
  curl http://127.0.0.1:9001/_sample    (how it is set, and what it saw)")]
pub(crate) struct Sample {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001", value_parser = console::address)]
    listen: SocketAddr,
    /// The version it says it is
    #[arg(long = "version", id = "sample-version", value_name = "VERSION", default_value = "v1")]
    version: String,
    /// The service it says it is
    #[arg(long, default_value = "my-service")]
    name: String,
    /// The share of requests that it answers with 500, spread evenly
    #[arg(long, value_name = "PERCENT", default_value = "0%")]
    fail: Percent,
    /// How long it waits before it answers
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    delay: Duration,
}

/// Runs until ctrl-c or SIGTERM.
///
/// # Errors
/// If it cannot listen there.
pub(crate) fn run(sample: &Sample) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(sample.listen).await.with_context(|| format!("cannot listen on {}", sample.listen))?;
        let (name, version, address) = (&sample.name, &sample.version, listener.local_addr()?);
        output::say(format_args!("{name} {version} listens on http://{address}"));
        let knobs = Arc::new(Knobs::default());
        knobs.set_fail(sample.fail);
        knobs.set_delay(sample.delay);
        let identity = Identity { service: name.clone(), version: version.clone(), address };
        tokio::select! {
            never = serve(listener, identity, knobs) => match never {},
            stopped = stop() => stopped.context("cannot wait for signals").map(|()| ExitCode::SUCCESS),
        }
    })
}

/// Returns on ctrl-c or SIGTERM.
///
/// # Errors
/// If signals cannot be waited for.
pub(crate) async fn stop() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Who a sample says it is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The name of its Service.
    pub(crate) service: String,
    /// Its version.
    pub(crate) version: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// How a sample behaves, and what it has seen; shared with those that turn the knobs.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    fail_ppm: AtomicU32,
    delay_ms: AtomicU64,
    down: AtomicBool,
    asked: AtomicU64,
    failed: AtomicU64,
}

impl Knobs {
    /// From now on it answers this share of requests with 500.
    pub(crate) fn set_fail(&self, share: Percent) {
        self.fail_ppm.store(share.ppm(), Relaxed);
    }

    /// From now on it waits so long before it answers.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis(), Relaxed);
    }

    /// While it is down, it breaks every connection off on which a request comes.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Relaxed);
    }

    /// How many requests it saw.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// How many of them it failed, or broke off.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Counts a request, and says whether it fails: those do with which the even spread reaches the next whole number.
    fn fails_next(&self) -> bool {
        let number = self.asked.fetch_add(1, Relaxed);
        let share = u64::from(self.fail_ppm.load(Relaxed));
        let due = |requests: u64| requests.wrapping_mul(share) / 1_000_000;
        let fails = due(number + 1) > due(number) || self.down.load(Relaxed);
        self.failed.fetch_add(u64::from(fails), Relaxed);
        fails
    }

    /// Turns the knobs as a query such as `fail=50%&delay=200ms&down=true` asks; all of them, or none.
    fn turn(&self, query: &str) -> Result<(), String> {
        let (mut fail, mut delay, mut down) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace("%25", "%");
            match name {
                "fail" => fail = Some(value.parse().map_err(|error| format!("fail: {error}"))?),
                "delay" => delay = Some(value.parse().map_err(|error| format!("delay: {error}"))?),
                "down" => down = Some(value.parse().map_err(|_| format!("down: `{value}` is not true or false"))?),
                _ => return Err(format!("`{name}` is none of fail, delay, down")),
            }
        }
        fail.into_iter().for_each(|share| self.set_fail(share));
        delay.into_iter().for_each(|delay| self.set_delay(delay));
        down.into_iter().for_each(|down| self.set_down(down));
        Ok(())
    }

    fn show(&self) -> serde_json::Value {
        json!({
            "fail": format!("{}%", f64::from(self.fail_ppm.load(Relaxed)) / 10_000.0),
            "delay": Duration::from_millis(self.delay_ms.load(Relaxed)).to_string(),
            "down": self.down.load(Relaxed),
            "asked": self.asked(),
            "failed": self.failed(),
        })
    }
}

/// Serves for ever on the current runtime.
pub(crate) async fn serve(listener: TcpListener, identity: Identity, knobs: Arc<Knobs>) -> Infallible {
    let identity = Arc::new(identity);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of file descriptors, or a caller that is gone already: others may fare better.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (identity, knobs) = (Arc::clone(&identity), Arc::clone(&knobs));
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&identity), Arc::clone(&knobs), request));
            // What a caller breaks off is the caller's affair.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers a request; an error breaks the connection off.
async fn answer(
    identity: Arc<Identity>,
    knobs: Arc<Knobs>,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    if request.uri().path() == KNOBS_PATH {
        return Ok(turn_knobs(&knobs, &request));
    }
    let fails = knobs.fails_next();
    let (head, mut body) = request.into_parts();
    while let Some(frame) = body.frame().await {
        frame.map_err(io::Error::other)?;
    }
    let delay = knobs.delay_ms.load(Relaxed);
    if delay > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
    }
    if knobs.down.load(Relaxed) {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let attempt = head.headers.get(ATTEMPT).and_then(|value| value.to_str().ok()?.parse::<u32>().ok()).unwrap_or(1);
    let instance = identity.address.to_string();
    let mut reply = reply(
        status,
        &json!({
            "service": identity.service,
            "version": identity.version,
            "instance": instance,
            "path": head.uri.path(),
            "method": head.method.as_str(),
            "attempt": attempt,
        }),
    );
    for (name, value) in [("x-version", &identity.version), ("x-instance", &instance)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(name, value);
        }
    }
    Ok(reply)
}

fn turn_knobs(knobs: &Knobs, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let turned = match *request.method() {
        Method::GET => Ok(()),
        Method::POST => knobs.turn(request.uri().query().unwrap_or_default()),
        _ => return reply(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "GET reads the knobs, POST turns them"})),
    };
    match turned {
        Ok(()) => reply(StatusCode::OK, &knobs.show()),
        Err(error) => reply(StatusCode::BAD_REQUEST, &json!({ "error": error })),
    }
}

fn reply(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(format!("{body}\n")));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn failures_are_spread_evenly() {
        let knobs = Knobs::default();
        knobs.turn("fail=20%").unwrap();
        let pattern: String = (0..10).map(|_| if knobs.fails_next() { 'x' } else { '.' }).collect();
        assert_eq!(pattern, "....x....x");
        assert_eq!((knobs.asked(), knobs.failed()), (10, 2));
    }

    #[test]
    fn knobs_are_turned_all_at_once_or_not_at_all() {
        let knobs = Knobs::default();
        knobs.turn("fail=50%25&delay=200ms&down=true").unwrap();
        assert_eq!(knobs.show()["fail"], "50%");
        assert_eq!(knobs.show()["delay"], "200ms");
        assert_eq!(knobs.turn("down=false&fail=lots").unwrap_err().split(':').next(), Some("fail"));
        assert_eq!(knobs.turn("speed=2").unwrap_err(), "`speed` is none of fail, delay, down");
        assert_eq!(knobs.show()["down"], true);
    }
}
