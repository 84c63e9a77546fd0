//! What is known to keep a node from intercepting, or to lead connections past it, in plain words. Said once, when the agent starts;
//! nothing is refused because of it, for connections that are not taken in go the plain way.

use std::fs;
use std::path::Path;

use super::ruleset::{Held, Ruleset};
use super::tools;

/// CAP_NET_ADMIN, as a bit of `CapEff` in /proc/self/status.
const NET_ADMIN: u32 = 12;

/// Says what was found.
pub(super) fn report(ruleset: &Ruleset) {
    for finding in findings(Path::new("/"), || tools::nft_check(&ruleset.whole(&Held::default()))) {
        tracing::warn!("{finding}");
    }
}

/// All that stands in the way, as far as the files below `root` and a trial run of nft tell.
fn findings(root: &Path, try_nft: impl FnOnce() -> Result<(), String>) -> Vec<String> {
    let mut found = Vec::new();
    if !may_administer(root) {
        found.push("the agent lacks CAP_NET_ADMIN: nothing can be intercepted; grant it that capability".to_owned());
    } else if let Err(error) = try_nft() {
        found.push(format!(
            "nothing can be intercepted, for the table cannot be made: {error} (needed: nftables 1.0 or newer, and the kernel's \
             nf_tables, nft_nat, nft_socket, nft_fib_inet and nft_ct)"
        ));
    }
    if root.join("sys/fs/bpf/tc/globals/cilium_lb4_reverse_sk").exists() {
        found.push(
            "Cilium's socket load balancer is on: it picks the instance inside the pod, before any packet is there to take in; \
             socketLB.hostNamespaceOnly=true takes it out of the pods (see docs/interception.md for what else is needed)"
                .to_owned(),
        );
    } else if root.join("sys/class/net/cilium_host").exists() {
        found.push(
            "this node runs Cilium: where it translates the ClusterIPs that pods connect to, at the pod's device or in its \
             sockets, connections are not taken in (see docs/interception.md)"
                .to_owned(),
        );
    }
    if root.join("sys/class/net/ovs-system").exists() {
        found.push(
            "this node runs Open vSwitch: where it switches the answers of instances straight to pods (Antrea, OVN-Kubernetes), \
             requests to instances on the same node fail with 502; run the agent with --node-address"
                .to_owned(),
        );
    }
    let all_strict = setting(root, "all", "rp_filter") == Some(1);
    let all_marked = setting(root, "all", "src_valid_mark") == Some(1);
    for device in devices(root) {
        if all_marked || setting(root, &device, "src_valid_mark") == Some(1) {
            found.push(format!(
                "net.ipv4.conf.{device}.src_valid_mark is 1: the replies of instances that come by {device} are dropped; set it to 0, \
                 or run the agent with --node-address"
            ));
        } else if all_strict && setting(root, &device, "rp_filter") != Some(2)
            || setting(root, &device, "rp_filter") == Some(1)
        {
            found.push(format!(
                "net.ipv4.conf.{device}.rp_filter is strict: replies that come by another device than the one that leads to \
                 the instance are dropped; 2 is loose"
            ));
        }
    }
    found
}

fn may_administer(root: &Path) -> bool {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_none_or(|bits| bits >> NET_ADMIN & 1 == 1)
}

fn setting(root: &Path, device: &str, name: &str) -> Option<u8> {
    let path = root.join("proc/sys/net/ipv4/conf").join(device).join(name);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The devices that have a default route: replies from other nodes come by them. Pods' own devices are symmetric.
fn devices(root: &Path) -> Vec<String> {
    let routes = fs::read_to_string(root.join("proc/net/route")).unwrap_or_default();
    let mut devices: Vec<String> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (device, destination) = (fields.next()?, fields.next()?);
            (destination == "00000000").then(|| device.to_owned())
        })
        .collect();
    devices.dedup();
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const ALLOWED: (&str, &str) = ("proc/self/status", "Name:\tx\nCapEff:\t0000000000001000\n");
    const ROUTES: (&str, &str) = ("proc/net/route", "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\n");

    #[test]
    fn a_node_that_can_do_it_has_nothing_said_of_it() {
        let root = root(&[ALLOWED, ROUTES, ("proc/sys/net/ipv4/conf/eth0/rp_filter", "2\n")]);
        assert!(findings(root.path(), || Ok(())).is_empty());
    }

    #[test]
    fn each_limit_is_said_with_what_to_do() {
        for (files, nft, said) in [
            (&[("proc/self/status", "CapEff:\t0000000000000000\n")][..], Ok(()), "CAP_NET_ADMIN"),
            (&[ALLOWED], Err("cannot run nft: No such file".to_owned()), "nftables 1.0"),
            (&[ALLOWED, ("sys/fs/bpf/tc/globals/cilium_lb4_reverse_sk", "")], Ok(()), "hostNamespaceOnly"),
            (&[ALLOWED, ("sys/class/net/cilium_host/mtu", "1500")], Ok(()), "Cilium"),
            (&[ALLOWED, ("sys/class/net/ovs-system/mtu", "1500")], Ok(()), "Open vSwitch"),
            (&[ALLOWED, ROUTES, ("proc/sys/net/ipv4/conf/eth0/rp_filter", "1\n")], Ok(()), "rp_filter is strict"),
            (&[ALLOWED, ROUTES, ("proc/sys/net/ipv4/conf/all/src_valid_mark", "1\n")], Ok(()), "src_valid_mark"),
        ] {
            let found = findings(root(files).path(), || nft);
            assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
        }
    }
}
