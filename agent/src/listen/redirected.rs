//! Connections that were taken in on their way: where the listeners are, and whom each connection was meant for.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use crate::clock;
use crate::forward::Source;
use crate::intercept::Place;
use crate::worker::{Caller, Worker};

/// Opens listeners for that many workers on the addresses that connections are sent to, at the first port that nobody has: an
/// agent that drains still has the one before.
///
/// # Errors
/// There is no port, or none may be opened.
pub fn bind(workers: usize, ipv6: bool) -> io::Result<(Place, Vec<Vec<std::net::TcpListener>>)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for place in Place::candidates(ipv6) {
        match bind_at(workers, place) {
            Ok(listeners) => return Ok((place, listeners)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// For each worker, a listener of each family.
fn bind_at(workers: usize, place: Place) -> io::Result<Vec<Vec<std::net::TcpListener>>> {
    let mut by_worker: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for address in place.addresses() {
        // The address comes with the rules, and need not be there yet.
        let listeners = super::bind_with(address, workers, any_address(address))?;
        for (worker, listener) in by_worker.iter_mut().zip(listeners) {
            worker.push(listener);
        }
    }
    Ok(by_worker)
}

#[cfg(target_os = "linux")]
fn any_address(address: SocketAddr) -> impl Fn(&socket2::Socket) -> io::Result<()> {
    move |socket| if address.is_ipv4() { socket.set_freebind_v4(true) } else { socket.set_freebind_v6(true) }
}

#[cfg(not(target_os = "linux"))]
fn any_address(_: SocketAddr) -> impl Fn(&socket2::Socket) -> io::Result<()> {
    |_| Ok(())
}

/// The caller of a connection that was taken in; nothing when it was not, but made to us: we are nobody's open proxy.
pub(super) fn caller(
    worker: &Rc<Worker>,
    stream: &TcpStream,
    address: SocketAddr,
    node_address: bool,
) -> Option<Caller> {
    let original = original(stream, address).ok()?;
    if Place::is_own(original) {
        return None;
    }
    let mut caller = if node_address {
        Caller::new(address, worker.pool.share(), clock::now())
    } else {
        let mut caller = Caller::new(address, worker.pool_of(address.ip()), clock::now());
        let table = worker.table();
        let others = table.addresses.workload(address.ip()).map_or(&[][..], |w| &w.addresses);
        caller.source = Some(Source::new(others.iter().copied().chain([address.ip()])));
        caller
    };
    caller.original = Some(original);
    Some(caller)
}

#[cfg(target_os = "linux")]
fn original(stream: &TcpStream, address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    let original = if address.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    original.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(not(target_os = "linux"))]
fn original(_: &TcpStream, _: SocketAddr) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
