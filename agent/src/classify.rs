//! What the head of a reply says about the try: judged once, and used by circuits, retries and metrics alike.
//!
//! A gRPC reply may say how it went in its head (trailers only) or not before its trailers; then the verdict is open until
//! the end, and a retry is not possible any more (the gRPC retry design, A6, commits at the first message too).

use http::Response;

use crate::body::grpc_status;
use crate::table::Outcome;

/// How the try stands when the head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ended so, whatever comes after.
    Known(Outcome),
    /// The trailers will tell.
    Open,
}

/// Judges a reply by its head.
pub fn at_head<B>(grpc: bool, reply: &Response<B>) -> Verdict {
    let status = reply.status().as_u16();
    if !grpc {
        return Verdict::Known(Outcome::Reply { status, grpc: None });
    }
    match grpc_status(reply.headers()) {
        Some(code) => Verdict::Known(Outcome::Reply { status, grpc: Some(code) }),
        None if status != 200 => Verdict::Known(Outcome::Reply { status, grpc: None }),
        None => Verdict::Open,
    }
}
