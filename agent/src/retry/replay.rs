//! A request's body that can be sent again: what has streamed by is kept, up to a limit; past it the body goes on streaming,
//! and can no longer be sent again. The same goes for a body that comes while a worker keeps as much as it may of all of them together.
//!
//! One [`Kept`] is shared by the tries of a request, all on one thread. All of them read what is kept; only the newest may read on: an
//! older one that is still polled has been given up and sees an error.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::body::{BodyError, Coming, Incoming};
use crate::message;

/// What a worker keeps at a time, in bytes: policies bound each request's, and a thousand large ones at once are none that they thought of.
const MOST_KEPT: usize = 64 << 20;

thread_local! {
    /// What this worker keeps.
    static KEPT: Cell<usize> = const { Cell::new(0) };
}

/// What has come of a body so far.
#[derive(Debug)]
pub struct Kept<B> {
    source: B,
    whole: SizeHint,
    frames: Frames,
    bytes: usize,
    limit: usize,
    overflowed: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    coming: Rc<Cell<Coming>>,
    newest: u32,
}

/// Frames that are kept, and counted as long as they are.
#[derive(Debug, Default)]
struct Frames {
    all: Vec<Bytes>,
    bytes: usize,
}

impl Frames {
    /// Whether there was room for it.
    fn push(&mut self, frame: &Bytes) -> bool {
        let kept = KEPT.get() + frame.len();
        if kept > MOST_KEPT {
            return false;
        }
        KEPT.set(kept);
        self.bytes += frame.len();
        self.all.push(frame.clone());
        true
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        KEPT.set(KEPT.get() - self.bytes);
    }
}

/// One try's view of the body, from its beginning.
#[derive(Debug)]
pub struct Replay<B = Incoming> {
    kept: Rc<RefCell<Kept<B>>>,
    position: usize,
    sent_trailers: bool,
    number: u32,
}

/// The body of a request that may be sent again.
#[derive(Debug)]
pub struct Replayable<B = Incoming>(Rc<RefCell<Kept<B>>>);

impl<B: Body<Data = Bytes> + Unpin> Replayable<B>
where
    B::Error: Into<BodyError>,
{
    /// Keeps up to `limit` bytes of it. A body that says that it is longer is not kept at all.
    pub fn new(source: B, limit: usize) -> Self {
        let whole = source.size_hint();
        let overflowed = whole.lower() > limit as u64;
        let ended = source.is_end_stream();
        Self(Rc::new(RefCell::new(Kept {
            source,
            whole,
            frames: Frames::default(),
            bytes: 0,
            limit,
            overflowed,
            trailers: None,
            ended,
            coming: Rc::default(),
            newest: 0,
        })))
    }

    /// Whether all that was sent so far can be sent again.
    pub fn can_be_sent_again(&self) -> bool {
        let kept = self.0.borrow();
        !kept.overflowed && kept.coming.get() != Coming::Failed
    }

    /// Whether all of it is kept, so that several tries can read it at a time.
    pub fn is_whole(&self) -> bool {
        self.can_be_sent_again() && self.0.borrow().ended
    }

    /// How it comes from the caller.
    pub fn coming(&self) -> Rc<Cell<Coming>> {
        Rc::clone(&self.0.borrow().coming)
    }

    /// The body from its beginning, for the next try.
    pub fn next_try(&self) -> Replay<B> {
        let mut kept = self.0.borrow_mut();
        kept.newest += 1;
        Replay { kept: Rc::clone(&self.0), position: 0, sent_trailers: false, number: kept.newest }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B>
where
    B::Error: Into<BodyError>,
{
    /// The next frame: what was kept first, then what comes.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.kept.borrow_mut();
        let kept = &mut *kept;
        if let Some(bytes) = kept.frames.all.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if kept.ended {
            let trailers = kept.trailers.clone().filter(|_| !std::mem::replace(&mut self.sent_trailers, true));
            return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
        }
        if kept.newest != self.number {
            return Poll::Ready(Some(Err("a newer try reads the body".into())));
        }
        let polled = Pin::new(&mut kept.source).poll_frame(cx);
        let ended = kept.source.is_end_stream();
        kept.coming.set(Coming::after(&polled, ended));
        match std::task::ready!(polled) {
            None => kept.ended = true,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    // Whose length is known is not asked for its end.
                    kept.ended = ended;
                    self.position += kept.keep(&bytes);
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Err(frame) => {
                    kept.ended = true;
                    if let Ok(mut trailers) = frame.into_trailers() {
                        if !message::prepare_trailers(&mut trailers) {
                            kept.coming.set(Coming::Failed);
                            return Poll::Ready(Some(Err("the trailers are too long".into())));
                        }
                        kept.trailers = Some(trailers.clone());
                        self.sent_trailers = true;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
            },
        }
        Poll::Ready(None)
    }

    /// Whether nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let all_sent = kept.ended && self.position >= kept.frames.all.len();
        all_sent && (kept.trailers.is_none() || self.sent_trailers)
    }

    /// How long the body is, if that is known.
    pub fn size_hint(&self) -> SizeHint {
        if self.position == 0 { self.kept.borrow().whole } else { SizeHint::default() }
    }
}

impl<B> Kept<B> {
    /// Keeps a frame if it fits; returns how many frames were kept by it.
    fn keep(&mut self, bytes: &Bytes) -> usize {
        if self.overflowed {
            return 0;
        }
        self.bytes += bytes.len();
        if self.bytes > self.limit || !self.frames.push(bytes) {
            self.overflowed = true;
            // The try that reads it goes on from the source; nobody will ask for these again.
            self.frames = Frames::default();
            return 0;
        }
        1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    struct Source(VecDeque<Bytes>);

    impl Body for Source {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|b| Ok(Frame::data(b))))
        }
    }

    fn read(replay: &mut Replay<Source>, frames: usize) -> Vec<u8> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        for _ in 0..frames {
            match replay.poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => all.extend_from_slice(frame.data_ref().unwrap()),
                Poll::Ready(None) => break,
                other => panic!("{other:?}"),
            }
        }
        all
    }

    proptest! {
        #[test]
        fn a_second_try_sends_the_same_bytes_however_far_the_first_came(
            body in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..10),
            first_frames in 0usize..12,
            limit in 0usize..200,
        ) {
            let whole: Vec<u8> = body.concat();
            let replayable = Replayable::new(Source(body.into_iter().map(Bytes::from).collect()), limit);
            let mut first = replayable.next_try();
            let sent = read(&mut first, first_frames);
            prop_assert_eq!(&sent[..], &whole[..sent.len()]);
            if replayable.can_be_sent_again() {
                prop_assert!(sent.len() <= limit);
                let mut second = replayable.next_try();
                prop_assert_eq!(read(&mut second, usize::MAX), whole);
            } else {
                prop_assert!(sent.len() > limit);
                prop_assert_eq!([sent, read(&mut first, usize::MAX)].concat(), whole);
            }
        }
    }

    #[test]
    fn a_worker_keeps_so_much_of_all_bodies_together_and_no_more() {
        let mebibyte = Bytes::from(vec![b'x'; 1 << 20]);
        let body = || Replayable::new(Source(vec![mebibyte.clone(); 10].into()), 16 << 20);
        let bodies: Vec<_> = (0..8).map(|_| body()).collect();
        for body in &bodies {
            // Whether or not it is kept, it is passed on.
            assert_eq!(read(&mut body.next_try(), usize::MAX).len(), 10 << 20);
        }
        assert_eq!(bodies.iter().filter(|body| body.can_be_sent_again()).count(), 6);
        assert_eq!(KEPT.get(), 60 << 20);
        drop(bodies);
        assert_eq!(KEPT.get(), 0);
        let later = body();
        read(&mut later.next_try(), usize::MAX);
        assert!(later.can_be_sent_again());
    }

    #[test]
    fn once_all_of_it_is_kept_every_try_reads_it() {
        let replayable = Replayable::new(Source([Bytes::from("a"), Bytes::from("b")].into()), 100);
        let mut old = replayable.next_try();
        read(&mut old, 1);
        assert!(!replayable.is_whole());
        let mut new = replayable.next_try();
        assert_eq!(read(&mut new, 9), b"ab");
        assert!(replayable.is_whole());
        assert_eq!(read(&mut old, 9), b"b");

        let sized = Replayable::new(http_body_util::Full::new(Bytes::from("a")), 100);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(sized.next_try().poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        assert!(sized.is_whole());
    }

    #[test]
    fn an_older_try_reads_nothing_that_a_newer_one_needs() {
        let replayable = Replayable::new(Source([Bytes::from("a"), Bytes::from("b")].into()), 100);
        let mut old = replayable.next_try();
        read(&mut old, 1);
        let mut new = replayable.next_try();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(old.poll_frame(&mut cx), Poll::Ready(Some(Err(_)))));
        assert_eq!(read(&mut new, 9), b"ab");
    }
}
