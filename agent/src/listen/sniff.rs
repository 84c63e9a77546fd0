//! What is spoken on a port that does not say: HTTP is known by its first line, and all else is not HTTP.
//!
//! Keeps true: a caller that waits for the other side to speak first is kept waiting for [`SILENCE`] only.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::PREFACE;

/// A caller of HTTP has sent something by then. One that has not is taken to wait for the server to speak first.
const SILENCE: Duration = Duration::from_millis(100);
/// A caller that began as HTTP does has sent its first line by then.
const FIRST_LINE: Duration = Duration::from_secs(5);
/// Enough of a first line to be sure, though its end may be further.
const MOST: usize = 4096;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    Http,
    Other,
    /// Nobody can tell yet.
    Unclear,
}

/// Reads until it is clear, or has taken long enough. Returns what was read, and whether it is HTTP.
///
/// # Errors
/// The connection broke off.
pub(super) async fn sniff(stream: &mut TcpStream) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    loop {
        match beginning(&bytes) {
            Beginning::Http => return Ok((bytes, true)),
            Beginning::Other => return Ok((bytes, false)),
            Beginning::Unclear => {}
        }
        let limit = if bytes.is_empty() { SILENCE } else { FIRST_LINE };
        match tokio::time::timeout(limit, stream.read_buf(&mut bytes)).await {
            // The caller has said all it has to say, or waits.
            Ok(Ok(0)) | Err(_) => return Ok((bytes, false)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

fn beginning(bytes: &[u8]) -> Beginning {
    let length = bytes.len().min(PREFACE.len());
    if length > 0 && bytes[..length] == PREFACE[..length] {
        return if length == PREFACE.len() { Beginning::Http } else { Beginning::Unclear };
    }
    // Lines that are empty may come first (RFC 9112 section 2.2).
    let line = bytes.trim_ascii_start();
    let method = line.iter().take_while(|b| b.is_ascii_alphabetic() || **b == b'-').count();
    match line.get(method) {
        None if line.is_empty() || method <= 32 => return Beginning::Unclear,
        Some(b' ') if method > 0 => {}
        _ => return Beginning::Other,
    }
    match memchr::memchr(b'\n', line) {
        Some(end) => {
            let line = line[..end].trim_ascii_end();
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            if version.starts_with(b"HTTP/1.") { Beginning::Http } else { Beginning::Other }
        }
        None if line.len() > MOST => Beginning::Http,
        None => Beginning::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_known_by_its_first_line() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Beginning::Http),
            (b"\r\nPOST /a?b HTTP/1.0\r\nhost: a\r\n\r\n", Beginning::Http),
            (b"M-SEARCH * HTTP/1.1\r\n", Beginning::Http),
            (PREFACE, Beginning::Http),
            (b"", Beginning::Unclear),
            (b"GE", Beginning::Unclear),
            (b"GET /index", Beginning::Unclear),
            (b"PRI * HTTP/2.0\r\n", Beginning::Unclear),
            // Redis, as people type it; SSH; TLS; a database that asks in binary.
            (b"GET key\r\n", Beginning::Other),
            (b"SSH-2.0-OpenSSH\r\n", Beginning::Other),
            (b"\x16\x03\x01\x02\x00\x01", Beginning::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Beginning::Other),
            (b"*1\r\n$4\r\nPING\r\n", Beginning::Other),
        ] {
            assert_eq!(beginning(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
