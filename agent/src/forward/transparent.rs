//! Connections to instances from the calling pod's own address, so that NetworkPolicies and logs mean what they meant, and no pod
//! reaches through the agent what it could not reach itself.
//!
//! The port is ours to choose, and is one that pods do not use for themselves ([`PORTS`]): a pod may be connected to the same
//! instance by itself, and two connections with the same addresses and ports would be one to the kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
#[cfg(target_os = "linux")]
use std::ops::RangeInclusive;
#[cfg(target_os = "linux")]
use std::time::Duration;

use tokio::net::TcpStream;

/// Above the ports that Linux gives to connections unless told otherwise (32768 to 60999).
#[cfg(target_os = "linux")]
pub(crate) const PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// How often a connection on which nothing is sent says that it is still there. What the kernel keeps of it, to know the answers by, is
/// forgotten some time after its last packet.
#[cfg(target_os = "linux")]
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(40);
/// How many ports are tried. Only those that the same pod has in use to the same instance are refused.
#[cfg(target_os = "linux")]
const TRIES: u32 = 16;

/// A caller's own addresses, of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Source {
    /// Of these addresses, the last of each family.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut source = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => source.v4 = Some(address),
                IpAddr::V6(address) => source.v6 = Some(address),
            }
        }
        source
    }

    /// The one from which that address can be connected to.
    fn to(self, address: IpAddr) -> Option<IpAddr> {
        if address.is_ipv4() { self.v4.map(IpAddr::V4) } else { self.v6.map(IpAddr::V6) }
    }
}

/// Connects from the caller's address.
///
/// # Errors
/// As for any connection; and when the caller has no address of that family.
pub(super) async fn connect(address: SocketAddr, source: Source) -> io::Result<TcpStream> {
    match source.to(address.ip()) {
        // A pod that calls itself: packets from its own address would not be taken by it.
        Some(own) if own == address.ip() => TcpStream::connect(address).await,
        Some(own) => from(own, address).await,
        // Not from the node's instead: the caller could reach more through us than by itself.
        None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the caller has no address of that family")),
    }
}

#[cfg(target_os = "linux")]
async fn from(own: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    use rand::Rng as _;
    let in_use = |error: &io::Error| matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable);
    for _ in 0..TRIES {
        let port = rand::rng().random_range(PORTS);
        let connected = match socket(SocketAddr::new(own, port)) {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match connected {
            Err(error) if in_use(&error) => {}
            other => return other,
        }
    }
    // Thousands of connections from this pod to this instance: any port will do.
    socket(SocketAddr::new(own, 0))?.connect(address).await
}

/// A socket that has an address which is not this node's.
#[cfg(target_os = "linux")]
fn socket(own: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
    use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
    let socket = Socket::new(Domain::for_address(own), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if own.is_ipv4() {
        socket.set_ip_transparent_v4(true)?
    } else {
        socket.set_ip_transparent_v6(true)?
    }
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    // The same port serves for connections to other instances.
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
}

#[cfg(not(target_os = "linux"))]
async fn from(_: IpAddr, _: SocketAddr) -> io::Result<TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_instances_family_is_taken() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.1.0.7".parse().unwrap(), "fd01::7".parse().unwrap());
        let both = Source::new([v4, v6]);
        assert_eq!((both.to(v4), both.to(v6)), (Some(v4), Some(v6)));
        assert_eq!(Source::new([v4]).to(v6), None);
    }
}
