//! Where on the node taken-in connections go, and by which numbers: addresses of our own on the loopback device, a mark and a
//! routing table.
//!
//! Why not nft's `redirect`: it sends to the first address of the device that a packet came by, and drops the packet where
//! that has none, which is so with many networks (Calico, the VPC network of EKS). Addresses of our own are the same on every node
//! and for every device; nobody outside the node is routed to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Link-local (RFC 3927), and not one of those that others are known to use.
pub(super) const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 115, 121);
/// Unique local (RFC 4193).
pub(super) const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x7974, 0x6368, 0, 0, 0, 0, 1);
/// The port; where another agent has it, one of the next few.
pub(super) const FIRST_PORT: u16 = 15001;
/// How many ports are tried: one for an agent that drains, and some for what else may listen there.
pub(super) const PORTS: u16 = 8;
/// One bit, set and asked for alone: kube-proxy, CNIs and VPNs use others, and keep theirs.
pub(super) const MARK: u32 = 0x10;
/// The routing table for packets that bear the mark.
pub(super) const ROUTING_TABLE: u32 = 15001;
/// Before rules that lead to a pod by its address (the VPC network of EKS has such at 512).
pub(super) const RULE_PREFERENCE: u32 = 50;

/// Whether the loopback device takes IPv6 addresses.
pub fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

/// Where one agent takes connections in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The port.
    pub port: u16,
    /// The node has IPv6.
    pub ipv6: bool,
}

impl Place {
    /// Where an agent may take connections in, the usual place first.
    pub fn candidates(ipv6: bool) -> impl Iterator<Item = Self> {
        (FIRST_PORT..FIRST_PORT + PORTS).map(move |port| Self { port, ipv6 })
    }

    /// The addresses to listen on.
    pub fn addresses(self) -> impl Iterator<Item = SocketAddr> {
        let v6 = self.ipv6.then_some(IpAddr::V6(ADDRESS_V6));
        [IpAddr::V4(ADDRESS_V4)].into_iter().chain(v6).map(move |ip| SocketAddr::new(ip, self.port))
    }

    /// Whether that is one of our own addresses: whoever connects to it was not taken in, and goes nowhere.
    pub fn is_own(address: SocketAddr) -> bool {
        address.ip() == ADDRESS_V4 || address.ip() == ADDRESS_V6
    }
}
