//! Looks at the bytes of HTTP/1 requests before the HTTP library does, for what it lets through and two parsers may read
//! differently: a line that ends with LF alone (RFC 9112 section 2.2 lets a recipient take it for a line's end, so one does and
//! another does not, and they disagree on where a request begins), and control characters behind a chunk's size.
//!
//! Keeps true: it follows the messages on a connection only as far as to know which bytes are lines and which are content; content is
//! never looked at, nor is what follows a request for another protocol, which may be spoken at once. What is malformed otherwise is
//! left to the library, which refuses it.

use memchr::memchr;

use crate::message::has_token;

/// Of a line whose end has not come, so much is kept, and its last byte. One that says how long content is has no need for more: it
/// is refused.
const LONGEST_KEPT: usize = 1024;
/// What the library refuses wherever it is in the lines of a message, and answers with 400 where it reads a head: NUL, which may be
/// nowhere but in a chunk extension; LF, which may not be there; and the end of the head, before which it does not look.
pub(super) const POISON: &[u8] = b"\0\n\r\n\r\n";

/// Where in the stream of messages a connection is.
#[derive(Debug)]
pub(super) struct Guard {
    state: State,
    /// The part of a line that has come, when its end has not.
    partial: Vec<u8>,
    framing: Framing,
    /// The message asks for another protocol.
    upgrade: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Lines of a head; whether one has come that is not empty.
    Head { begun: bool },
    /// Content: so many bytes more.
    Content(u64),
    /// The line that says how long the next chunk is.
    ChunkSize,
    /// A chunk, and the line end behind it: so many bytes more.
    Chunk(u64),
    /// Lines behind the last chunk.
    Trailers,
    /// Behind a request for another protocol: anything.
    Unguarded,
}

/// What the head says about the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Default for Guard {
    fn default() -> Self {
        let (state, framing) = (State::Head { begun: false }, Framing::default());
        Self { state, partial: Vec::new(), framing, upgrade: false }
    }
}

impl Guard {
    /// Whether nothing is looked at any more.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Unguarded
    }

    /// Whether what has come ends with a message, or with a part of a head: nothing more of a body is on its way.
    pub(super) fn is_behind_a_body(&self) -> bool {
        matches!(self.state, State::Head { .. } | State::Unguarded)
    }

    /// Follows the next bytes. Returns how many of them come before the first line that must not pass, if there is one (none, where
    /// that line has begun before them); after that the guard is of no more use.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let State::Content(left) | State::Chunk(left) = self.state {
                let now = left.min((bytes.len() - at) as u64);
                at += now as usize;
                self.skipped(left - now);
                continue;
            }
            let Some(length) = memchr(b'\n', &bytes[at..]) else {
                self.keep(&bytes[at..]);
                return None;
            };
            let end = at + length;
            let held = if self.partial.is_empty() {
                self.line(&bytes[at..end])
            } else {
                self.keep(&bytes[at..end]);
                let mut line = std::mem::take(&mut self.partial);
                let held = self.line(&line);
                line.clear();
                self.partial = line;
                held
            };
            if !held {
                return Some(at);
            }
            at = end + 1;
        }
        None
    }

    /// Keeps a piece of a line whose end has not come.
    fn keep(&mut self, piece: &[u8]) {
        let room = LONGEST_KEPT.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
        if let Some(last) = piece.last()
            && piece.len() > room
        {
            self.partial.truncate(LONGEST_KEPT);
            self.partial.push(*last);
        }
    }

    /// What comes behind a message.
    fn behind(&mut self) -> State {
        if std::mem::take(&mut self.upgrade) { State::Unguarded } else { State::Head { begun: false } }
    }

    /// Content has come; `left` is still to come.
    fn skipped(&mut self, left: u64) {
        self.state = match self.state {
            State::Content(_) if left == 0 => self.behind(),
            State::Content(_) => State::Content(left),
            _ if left == 0 => State::ChunkSize,
            _ => State::Chunk(left),
        };
    }

    /// A line has come, without its LF. False when it must not pass.
    fn line(&mut self, line: &[u8]) -> bool {
        let Some(line) = line.strip_suffix(b"\r") else { return false };
        match self.state {
            State::Head { begun: false } if line.is_empty() => {}
            State::Head { .. } if line.is_empty() => {
                let framing = std::mem::take(&mut self.framing);
                self.state = match framing {
                    Framing { chunked: true, .. } => State::ChunkSize,
                    Framing { length: Some(length @ 1..), .. } => State::Content(length),
                    Framing { .. } => self.behind(),
                };
            }
            State::Head { .. } => {
                self.state = State::Head { begun: true };
                return self.field(line);
            }
            State::ChunkSize => {
                let control = |b: &u8| b.is_ascii_control() && *b != b'\t';
                if line.len() >= LONGEST_KEPT || line.iter().any(control) {
                    return false;
                }
                let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
                let size = std::str::from_utf8(&line[..digits]).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
                self.state = match size {
                    // One that cannot be read is refused by the library, and nothing more is read.
                    None | Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size.saturating_add(2)),
                };
            }
            State::Trailers if line.is_empty() => self.state = self.behind(),
            State::Trailers | State::Content(_) | State::Chunk(_) | State::Unguarded => {}
        }
        true
    }

    /// Takes note of what a header field says about what follows. False when it is too long to say so.
    fn field(&mut self, line: &[u8]) -> bool {
        // The names begin so; most others do not.
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T' | b'u' | b'U')) {
            return true;
        }
        let Some(colon) = memchr(b':', line) else { return true };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.framing.length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.framing.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            // To HTTP/2 none is made (see `message`), and HTTP/1 goes on.
            self.upgrade |= !has_token(value, "h2c");
        } else {
            return true;
        }
        line.len() < LONGEST_KEPT
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[u8] = b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\
        POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 5\r\n\r\na\nb\nc\
        POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\n\n\n\n\r\n1\r\n\n\r\n0\r\nx-trailer: 1\r\n\r\n\
        GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    proptest! {
        #[test]
        fn line_ends_in_content_are_nobodys_business_however_the_bytes_are_cut(
            cuts in prop::collection::vec(0usize..GOOD.len(), 0..20),
        ) {
            let mut cuts = cuts;
            cuts.extend([0, GOOD.len()]);
            cuts.sort_unstable();
            let mut guard = Guard::default();
            for pair in cuts.windows(2) {
                prop_assert_eq!(guard.follow(&GOOD[pair[0]..pair[1]]), None);
            }
            prop_assert_eq!(guard.state, State::Head { begun: false });
        }

        #[test]
        fn a_lone_lf_is_found_wherever_a_line_should_end(cut in 0usize..200, which in 0usize..16) {
            // The CR of one line end that is not in content is taken away.
            let ends: Vec<usize> = GOOD.windows(2).enumerate().filter(|(_, w)| *w == b"\r\n").map(|(at, _)| at).collect();
            let at = ends[which % ends.len()];
            // Behind a chunk's content the library itself wants both.
            let behind_chunk = GOOD[..at].ends_with(b"\n\n\n") || GOOD[..at].ends_with(b"1\r\n\n");
            prop_assume!(!behind_chunk);
            let mut bad = GOOD.to_vec();
            bad.remove(at);
            let cut = cut % bad.len();
            let mut guard = Guard::default();
            let found = guard.follow(&bad[..cut]).or_else(|| guard.follow(&bad[cut..]).map(|f| f + cut));
            // Where the line begins, or the bytes do among which its end is.
            let begins = bad[..at].iter().rposition(|b| *b == b'\n').map_or(0, |lf| lf + 1);
            let begins = begins + usize::from(bad[begins..].starts_with(b"cPOST"));
            prop_assert_eq!(found, Some(if begins < cut && at >= cut { cut } else { begins }));
        }
    }
}
