//! Callers and instances that speak bytes, for what no HTTP library would say, and for seeing what was said exactly.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::backend::listener;
use crate::in_time;

/// A caller's connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// The other end, once it was accepted.
    pub fn of(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends bytes. That the peer has closed already is seen when its answer is read.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.stream.write_all(bytes.as_ref()).await);
    }

    /// Closes this side.
    pub async fn end(&mut self) {
        drop(self.stream.shutdown().await);
    }

    /// Everything up to and with these bytes; what came instead, if the peer closes before.
    pub async fn until(&mut self, end: &str) -> String {
        let bytes = loop {
            if let Some(at) = find(&self.read, end.as_bytes()) {
                break self.read.drain(..at + end.len()).collect();
            }
            if self.more().await == 0 {
                break std::mem::take(&mut self.read);
            }
        };
        text(bytes)
    }

    /// So many bytes; what came instead, if the peer closes before.
    pub async fn exactly(&mut self, count: usize) -> String {
        while self.read.len() < count && self.more().await > 0 {}
        let count = count.min(self.read.len());
        text(self.read.drain(..count).collect())
    }

    /// Everything until the peer closes.
    pub async fn rest(&mut self) -> String {
        self.closed().await;
        text(std::mem::take(&mut self.read))
    }

    /// Everything until the connection ends, and whether it was reset.
    pub async fn ending(&mut self) -> (String, bool) {
        let ended = loop {
            match in_time("bytes from the peer", self.stream.read_buf(&mut self.read)).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        (text(std::mem::take(&mut self.read)), ended.is_err())
    }

    /// Waits until the peer has closed, and keeps what came before.
    pub async fn closed(&mut self) {
        while self.more().await > 0 {}
    }

    /// A reply: its head, and its body as its Content-Length or its chunks (left as they are) say. Interim replies are
    /// replies of their own.
    pub async fn reply(&mut self) -> String {
        let mut reply = self.until("\r\n\r\n").await;
        let head = reply.to_ascii_lowercase();
        let interim = head.starts_with("http/1.1 1");
        if head.contains("transfer-encoding: chunked") {
            reply += &self.until("0\r\n\r\n").await;
        } else if let Some(length) = field(&head, "content-length").filter(|_| !interim) {
            reply += &self.exactly(length.parse().unwrap()).await;
        }
        reply
    }

    /// Reads; 0 when the peer has closed or broken off.
    async fn more(&mut self) -> usize {
        in_time("bytes from the peer", self.stream.read_buf(&mut self.read)).await.unwrap_or(0)
    }

    /// Breaks the connection off with a reset.
    pub fn reset(self) {
        // Closing with a linger of zero is how a reset is made.
        #[expect(deprecated, reason = "blocking is what a linger can do, and a linger of zero does not")]
        self.stream.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn text(bytes: Vec<u8>) -> String {
    bytes.into_iter().map(char::from).collect()
}

/// A field's value in a head whose names are lower case.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n");
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// An instance that does with each connection what it is told.
#[derive(Debug)]
pub struct RawServer {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl RawServer {
    /// Runs this for every connection.
    pub fn start<F: Future<Output = ()> + Send + 'static>(serve: impl Fn(Wire) -> F + Send + 'static) -> Self {
        Self::start_with(move |stream| serve(Wire::of(stream)))
    }

    /// The same, for what speaks another way.
    pub fn start_with<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener: TcpListener = listener("127.0.0.1:0".parse().unwrap());
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                connections.spawn(serve(stream));
            }
        });
        Self { address, task }
    }

    /// Answers every request with these bytes, after its head and a body with a Content-Length.
    pub fn answering(bytes: &'static str) -> Self {
        Self::start(move |mut wire| async move {
            loop {
                let request = wire.reply().await;
                if request.is_empty() {
                    return;
                }
                wire.send(bytes).await;
            }
        })
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An instance that reads as strictly as can be, remembers every request, and what was wrong with the first that was not one.
#[derive(Debug)]
pub struct Strict {
    /// Where it listens.
    pub server: RawServer,
    seen: Arc<Mutex<Vec<Result<Message, String>>>>,
}

/// A request as its bytes say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `METHOD target`.
    pub line: String,
    /// Names in lower case, and values.
    pub fields: Vec<(String, String)>,
    /// The body without its framing.
    pub body: String,
}

impl Strict {
    /// Answers every request with 200.
    pub fn start() -> Self {
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let memory = Arc::clone(&seen);
        let server = RawServer::start(move |mut wire| {
            let memory = Arc::clone(&memory);
            async move {
                while let Some(message) = message(&mut wire).await {
                    let good = message.is_ok();
                    memory.lock().unwrap().push(message);
                    if !good {
                        return;
                    }
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        });
        Self { server, seen }
    }

    /// What reached it since it was asked last.
    pub fn seen(&self) -> Vec<Result<Message, String>> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// Reads one request; nothing when the connection ends before it begins.
async fn message(wire: &mut Wire) -> Option<Result<Message, String>> {
    let head = wire.until("\r\n\r\n").await;
    if head.is_empty() {
        return None;
    }
    Some(match read_head(&head) {
        Ok((line, fields)) => read_body(wire, &fields).await.map(|body| Message { line, fields, body }),
        Err(why) => Err(format!("{why}: {head:?}")),
    })
}

fn read_head(head: &str) -> Result<(String, Vec<(String, String)>), String> {
    let head = head.strip_suffix("\r\n\r\n").ok_or("a head that does not end")?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let words: Vec<_> = line.split(' ').collect();
    if words.len() != 3 || words[2] != "HTTP/1.1" || line.contains(|c: char| c.is_control()) {
        return Err(format!("an odd request line {line:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a field without a colon")?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return Err(format!("an odd field name {name:?}"));
        }
        if value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(format!("an odd value {value:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if fields.iter().filter(|(name, _)| name == "host").count() != 1 {
        return Err("not one Host".to_owned());
    }
    Ok((words[..2].join(" "), fields))
}

async fn read_body(wire: &mut Wire, fields: &[(String, String)]) -> Result<String, String> {
    let of =
        |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => Ok(String::new()),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| "a length without bound")?;
            let body = wire.exactly(length).await;
            if body.len() == length { Ok(body) } else { Err(format!("a body that was cut after {body:?}")) }
        }
        ([], ["chunked"]) => chunks(wire).await,
        odd => Err(format!("odd framing {odd:?}")),
    }
}

async fn chunks(wire: &mut Wire) -> Result<String, String> {
    let mut body = String::new();
    loop {
        let line = wire.until("\r\n").await;
        let size = line.strip_suffix("\r\n").ok_or("chunks that were cut")?;
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("an odd chunk size {size:?}"))?;
        if size == 0 {
            break;
        }
        body += &wire.exactly(size).await;
        if wire.exactly(2).await != "\r\n" {
            return Err("a chunk that does not end".to_owned());
        }
    }
    while wire.until("\r\n").await.len() > 2 {}
    Ok(body)
}
