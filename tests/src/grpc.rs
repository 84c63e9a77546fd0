//! A gRPC service with every kind of call, and a client for it, both made with tonic.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

pub use self::proto::Word;
use self::proto::echo_client::EchoClient;
use self::proto::echo_server::{Echo, EchoServer};
use crate::backend::listener;

/// What is generated from `proto/echo.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "it is generated")]
mod proto {
    tonic::include_proto!("echo.v1");
}

/// A client.
pub type Client = EchoClient<Channel>;

/// A client that reaches `my-service.shop` through an agent.
pub async fn client(agent: SocketAddr) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{agent}")).unwrap();
    let origin = format!("http://{}", crate::manifests::HOST).parse().unwrap();
    EchoClient::new(endpoint.origin(origin).connect().await.unwrap())
}

/// A word that is all there is to say.
pub fn word(text: &str) -> Word {
    Word { text: text.to_owned(), ..Word::default() }
}

/// An instance that speaks gRPC.
#[derive(Debug)]
pub struct EchoBackend {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    version: String,
    calls: AtomicU64,
    /// Downloads that came to an end, this way or that.
    ended: AtomicU64,
    /// The status that every call ends with; 0: none.
    status: AtomicI32,
}

impl EchoBackend {
    /// An instance of this version on a port of the system's choice.
    pub async fn start(version: &str) -> Self {
        let listener = listener("127.0.0.1:0".parse().unwrap());
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { version: version.to_owned(), ..State::default() });
        let server = Server::builder().add_service(EchoServer::new(Service(Arc::clone(&state))));
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, state, task }
    }

    /// How many calls reached it.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Relaxed)
    }

    /// How many downloads came to an end there, because all was said or because nobody listens.
    pub fn downloads_ended(&self) -> u64 {
        self.state.ended.load(Relaxed)
    }

    /// From now on every call ends with this status; `Ok`: as it should.
    pub fn ends_with(&self, code: Code) {
        self.state.status.store(code.into(), Relaxed);
    }
}

impl Drop for EchoBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct CountWhenDropped(Arc<State>);

impl Drop for CountWhenDropped {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
    }
}

struct Service(Arc<State>);

type Words = Pin<Box<dyn Stream<Item = Result<Word, Status>> + Send>>;

impl Service {
    fn begin(&self) -> Result<(), Status> {
        self.0.calls.fetch_add(1, Relaxed);
        status(self.0.status.load(Relaxed))
    }

    fn reply<T>(&self, message: T) -> Response<T> {
        let mut reply = Response::new(message);
        reply.metadata_mut().insert("x-version", self.0.version.parse().unwrap());
        reply
    }
}

/// The status as an error, with a word of its own in the trailers.
fn status(code: i32) -> Result<(), Status> {
    if code == 0 {
        return Ok(());
    }
    let mut status = Status::new(Code::from(code), "as it was asked to");
    status.metadata_mut().insert("x-trailer", "kept".parse().unwrap());
    Err(status)
}

#[tonic::async_trait]
impl Echo for Service {
    async fn once(&self, request: Request<Word>) -> Result<Response<Word>, Status> {
        self.begin()?;
        let word = request.into_inner();
        status(word.status)?;
        Ok(self.reply(word))
    }

    async fn upload(&self, request: Request<Streaming<Word>>) -> Result<Response<Word>, Status> {
        self.begin()?;
        let mut words = request.into_inner();
        let mut all = Vec::new();
        while let Some(word) = words.message().await? {
            all.push(word.text);
        }
        Ok(self.reply(word(&all.join(" "))))
    }

    type DownloadStream = Words;

    async fn download(&self, request: Request<Word>) -> Result<Response<Words>, Status> {
        self.begin()?;
        let said = request.into_inner();
        let times = usize::try_from(said.times).unwrap();
        let last = status(said.status).err().map(Err);
        let ended = CountWhenDropped(Arc::clone(&self.0));
        let words = tokio_stream::iter(std::iter::repeat_n(Ok(said), times).chain(last)).map(move |word| {
            let _ = &ended;
            word
        });
        Ok(self.reply(Box::pin(words) as Words))
    }

    type ChatStream = Words;

    async fn chat(&self, request: Request<Streaming<Word>>) -> Result<Response<Words>, Status> {
        self.begin()?;
        let words = request.into_inner().map(|word| {
            let word = word?;
            status(word.status)?;
            Ok(word)
        });
        Ok(self.reply(Box::pin(words) as Words))
    }
}
