//! A stand-in for a controller: it tells each agent what the test says, over the real wire.

use std::net::SocketAddr;
use std::pin::Pin;

use switchyard_proto::v1::switchyard_server::{Switchyard, SwitchyardServer};
use switchyard_proto::v1::{self, AgentMessage};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::backend::listener;

/// What agents are told: all of it, whenever it changes.
pub type Said = watch::Receiver<v1::Update>;

/// A controller that is gone, with all its streams, when this is dropped.
#[derive(Debug)]
pub struct Feed {
    /// Where agents connect.
    pub address: SocketAddr,
    task: JoinHandle<()>,
    /// Streams end when this is dropped.
    _open: watch::Sender<()>,
}

impl Feed {
    /// Tells agents what is said, at an address; port 0 is any.
    pub fn start(address: SocketAddr, said: Said) -> Self {
        let listener = listener(address);
        let address = listener.local_addr().unwrap();
        let (open, opened) = watch::channel(());
        let service = SwitchyardServer::new(Service { said, opened });
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, task, _open: open }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service {
    said: Said,
    opened: watch::Receiver<()>,
}

#[tonic::async_trait]
impl Switchyard for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Update, Status>> + Send>>;
    type ShareStream = tokio_stream::Empty<Result<v1::ShareReply, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut heard = request.into_inner();
        // Read, so that the agent is not held up.
        tokio::spawn(async move { while let Ok(Some(_)) = heard.message().await {} });
        let mut opened = self.opened.clone();
        let closed = async move { opened.changed().await.is_err() };
        let updates = WatchStream::new(self.said.clone()).map(Ok);
        Ok(Response::new(Box::pin(futures_util::StreamExt::take_until(updates, Box::pin(closed)))))
    }

    async fn relay(&self, _: Request<Streaming<v1::RelayMessage>>) -> Result<Response<v1::RelayReply>, Status> {
        Err(Status::unimplemented("there is no other controller"))
    }
    async fn share(&self, _: Request<v1::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        Err(Status::unimplemented("there is no other controller"))
    }
}
