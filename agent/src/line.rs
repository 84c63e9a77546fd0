//! What a caller's connection and the requests on it must know of one another, on HTTP/1. The library has the connection and may be
//! asked about none of this, so each side leaves a note.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Notes about one connection. All of it is on one thread; they are atomic because the library wants what it owns to be `Send`.
#[derive(Debug)]
pub struct Line {
    /// No request is under way, and the last reply has been written: what the library writes now is its own.
    quiet: AtomicBool,
    /// The last request has ended, and some of its reply may wait to be written.
    ended: AtomicBool,
    /// A request asked for another protocol, and what came behind it was not looked at.
    unguarded: AtomicBool,
    /// Only the connection's end says where the reply ends that is being written.
    open_ended: AtomicBool,
    /// The library has all of a request and bytes behind it. It asks for no more, so it would not notice that the caller goes away.
    unread: AtomicBool,
    /// Bytes that were read.
    read: AtomicU64,
    /// Some of a request's body has not been read.
    amid_body: AtomicBool,
}

impl Default for Line {
    fn default() -> Self {
        let no = || AtomicBool::new(false);
        Self {
            quiet: AtomicBool::new(true),
            ended: no(),
            unguarded: no(),
            open_ended: no(),
            unread: no(),
            read: AtomicU64::new(0),
            amid_body: no(),
        }
    }
}

impl Line {
    /// A request begins.
    pub fn begin(&self) {
        self.quiet.store(false, Relaxed);
        self.ended.store(false, Relaxed);
    }

    /// The last one under way has ended.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// The library has written all it had.
    pub fn flushed(&self) {
        if self.ended.load(Relaxed) {
            self.ended.store(false, Relaxed);
            self.quiet.store(true, Relaxed);
        }
    }

    /// Whether there is nothing that the library could write for a request.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Relaxed)
    }

    /// From here on bytes are not looked at.
    pub fn leave_unguarded(&self) {
        self.unguarded.store(true, Relaxed);
    }

    /// Whether what follows may be anything, so that no other request may be read from it.
    pub fn is_unguarded(&self) -> bool {
        self.unguarded.load(Relaxed)
    }

    /// Whether the reply under way would look whole if the connection just ended.
    pub fn set_open_ended(&self, is: bool) {
        self.open_ended.store(is, Relaxed);
    }

    /// Whether the connection's end must not be taken for the reply's.
    pub fn is_open_ended(&self) -> bool {
        self.open_ended.load(Relaxed)
    }

    /// Whether some of the body of the request under way is still to be read.
    pub fn set_amid_body(&self, is: bool) {
        self.amid_body.store(is, Relaxed);
    }

    /// Whether the connection cannot serve for another request, unless the rest of a body is read first.
    pub fn is_amid_body(&self) -> bool {
        self.amid_body.load(Relaxed)
    }

    /// So many bytes more were read.
    pub fn has_read(&self, bytes: usize) {
        // One thread writes, so nothing is lost between the two.
        self.read.store(self.read.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// How many bytes were read.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Whether the library waits for bytes.
    pub fn set_unread(&self, is: bool) {
        self.unread.store(is, Relaxed);
    }

    /// Whether somebody else must look whether the caller is still there.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }
}
