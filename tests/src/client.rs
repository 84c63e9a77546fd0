//! Callers with real HTTP clients: one connection at a time, HTTP/1.1 or HTTP/2, with every error in the open.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What goes wrong in a call.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Any body.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A request in origin form with this Host.
pub fn request(method: Method, host: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).header("host", host).body(body).unwrap()
}

/// A GET.
pub fn get_request(host: &str, path: &str) -> Request<Body> {
    request(Method::GET, host, path, empty())
}

/// A reply that has come to its end.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: HeaderMap,
}

impl Reply {
    /// Reads a reply to its end.
    ///
    /// # Errors
    /// It is cut.
    pub async fn whole(reply: Response<Incoming>) -> Result<Self, Error> {
        let (head, body) = reply.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header field as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The version of the instance that answered.
    pub fn version(&self) -> &str {
        self.header("x-version")
    }

    /// Why the agent answered itself; empty if it did not.
    pub fn reason(&self) -> &str {
        self.header("x-switchyard-reason")
    }
}

/// A connection of a caller.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Body>),
    /// HTTP/2 by prior knowledge.
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    /// Opens a connection of HTTP/1.1.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn http1(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // How a connection ends is seen by its requests.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Self::Http1(sender))
    }

    /// Opens a connection of HTTP/2.
    ///
    /// # Errors
    /// Nobody listens there, or not for HTTP/2.
    pub async fn http2(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self::Http2(sender))
    }

    /// Sends a request; gives the reply's head, and its body as it comes.
    ///
    /// # Errors
    /// There is no reply.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(for_http2(request)).await?)
            }
        }
    }

    /// Sends a request and reads the reply to its end.
    ///
    /// # Errors
    /// There is no reply, or it is cut.
    pub async fn ask(&mut self, request: Request<Body>) -> Result<Reply, Error> {
        Reply::whole(self.send(request).await?).await
    }
}

/// HTTP/2 has the Host in its target.
fn for_http2(mut request: Request<Body>) -> Request<Body> {
    if let Some(host) = request.headers_mut().remove("host") {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder().scheme("http").authority(host.to_str().unwrap()).path_and_query(path);
        *request.uri_mut() = uri.build().unwrap();
    }
    request
}

/// Asks on a connection of its own, over HTTP/1.1.
///
/// # Errors
/// There is no reply, or it is cut.
pub async fn ask(address: SocketAddr, request: Request<Body>) -> Result<Reply, Error> {
    Connection::http1(address).await?.ask(request).await
}

/// GETs on a connection of its own, over HTTP/1.1.
///
/// # Errors
/// There is no reply, or it is cut.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Reply, Error> {
    ask(address, get_request(host, path)).await
}
