//! A connection after an upgrade (RFC 9110 section 7.8): bytes both ways, until both sides are done. What is spoken on it, such as
//! WebSocket, is none of the agent's business.

use std::rc::Rc;
use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::admit::limits::Slot;
use crate::body::ReplyBody;
use crate::clock;
use crate::record::Exchange;
use crate::refusal::{Reason, Refusal};
use crate::worker::{Caller, Worker};

/// Passes the instance's 101 on, and bytes after it. The request counts as done when the protocols are switched, but for the bounds of
/// its policy, of which it holds `slot` to the end.
pub fn open(
    worker: &Rc<Worker>,
    connection: Rc<Caller>,
    caller: Option<OnUpgrade>,
    mut head: http::response::Parts,
    mut exchange: Exchange,
    slot: Option<Slot>,
) -> Response<ReplyBody> {
    let instance = head.extensions.remove::<OnUpgrade>();
    let slots = (slot, head.extensions.remove::<Arc<Slot>>());
    let (Some(caller), Some(instance)) = (caller, instance) else {
        exchange.refused(Reason::UpstreamReset);
        exchange.status(StatusCode::BAD_GATEWAY.as_u16());
        let detail = "the instance switched protocols, and nobody had asked it to";
        return Refusal::new(Reason::UpstreamReset, detail).reply_and_close(false);
    };
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        worker.requests_under_way(1);
        connection.begin();
        if let (Ok(caller), Ok(instance)) = (caller.await, instance.await) {
            // Either side may break off at any time; that is how many tunnels end.
            let _ = copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(instance)).await;
        }
        drop(slots);
        connection.end(clock::now());
        worker.requests_under_way(-1);
    });
    Response::from_parts(head, ReplyBody::empty())
}
