//! The nftables table as text, in nft's own language: all of it, and what changes it.
//!
//! Keeps true:
//! - Everything is in tables of our own, `inet switchyard` and, on a node with a bridge, `bridge switchyard`; nothing else is named here.
//! - A text is one transaction: all of it holds, or none.
//! - The set `alive` bears its owner's mark in its name, and every text but the one that makes the table asks for that set
//!   first: whoever is no longer the owner changes nothing, and finds out that way.
//! - The capture rule asks that set, whose one element expires unless it is renewed ([`ALIVE_FOR`]).
//! - What the table of the bridge family remembers stays when it is made anew, so that a new agent does not take from an old one the answers
//!   it waits for.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::place::{MARK, Place};
use crate::forward::transparent::{KEEPALIVE, PORTS};
use crate::table::Captured;

/// How long connections are taken in after the last renewal. Renewed every second, so two may be late; and together with what it
/// takes to see that a worker is stuck, traffic is back on the plain path within five seconds.
const ALIVE_FOR: Duration = Duration::from_secs(3);

/// How long after its last packet an agent's connection over a bridge is remembered: two reminders may be lost.
const REMEMBERED_FOR: Duration = Duration::from_secs(3 * KEEPALIVE.as_secs());
/// How many of those connections are remembered, of each family. Memory is taken for as many as there are.
const REMEMBERED: u32 = 1 << 20;

/// What the kernel holds, or is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// What is taken in.
    pub(super) captured: Captured,
    /// Answers are fetched from the node's bridges, which would switch them past the agent, to the pod whose address they are sent to.
    pub(super) bridged: bool,
}

/// Who owns the tables, and where they lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// Who: part of a set's name.
    pub(super) owner: String,
    /// Where connections are sent to.
    pub(super) place: Place,
}

impl Ruleset {
    fn alive_set(&self) -> String {
        format!("alive_{}", self.owner)
    }

    /// Whether a listing of the table is of one that this owner made.
    pub(super) fn owns(&self, listing: &str) -> bool {
        listing.contains(&self.alive_set())
    }

    /// Makes the table, in place of whatever was there under its name.
    pub(super) fn whole(&self, held: &Held) -> String {
        let alive = self.alive_set();
        let mut text =
            String::from("add table inet switchyard\ndelete table inet switchyard\ntable inet switchyard {\n");
        for (name, kind) in [
            ("services4", "ipv4_addr . inet_service"),
            ("services6", "ipv6_addr . inet_service"),
            ("workloads4", "ipv4_addr"),
            ("workloads6", "ipv6_addr"),
        ] {
            line(&mut text, format_args!("\tset {name} {{ type {kind}; }}"));
        }
        line(&mut text, format_args!("\tset {alive} {{ type inet_proto; flags timeout; }}"));
        line(&mut text, format_args!("\tchain capture {{\n\t\ttype nat hook prerouting priority dstnat - 10;"));
        for address in self.place.addresses() {
            let (ip, n) = family(address.ip());
            line(
                &mut text,
                format_args!(
                    "\t\t{ip} saddr @workloads{n} {ip} daddr . tcp dport @services{n} meta l4proto @{alive} dnat {ip} to {address}"
                ),
            );
        }
        line(&mut text, format_args!("\t}}\n\tchain own {{\n\t\ttype filter hook output priority mangle;"));
        for (ip, n) in [("ip", 4), ("ip6", 6)] {
            line(
                &mut text,
                format_args!(
                    "\t\tmeta l4proto tcp ct direction original {ip} saddr @workloads{n} fib saddr type != local ct mark set ct mark or {MARK:#x}"
                ),
            );
        }
        line(&mut text, format_args!("\t}}\n\tchain answers {{\n\t\ttype filter hook prerouting priority mangle;"));
        for (ip, n) in [("ip", 4), ("ip6", 6)] {
            line(
                &mut text,
                format_args!(
                    "\t\t{ip} daddr @workloads{n} meta l4proto tcp socket transparent 1 socket wildcard 0 meta mark set meta mark or {MARK:#x}"
                ),
            );
        }
        line(
            &mut text,
            format_args!(
                "\t\tmeta l4proto tcp ct direction reply ct mark and {MARK:#x} != 0 meta mark set meta mark or {MARK:#x}\n\t}}\n}}"
            ),
        );
        text.push_str(&changes(&Held::default(), held));
        text
    }

    /// Takes connections in for a while more, or no longer, and changes what is taken in.
    pub(super) fn step(&self, alive: bool, from: &Held, to: &Held) -> String {
        let set = self.alive_set();
        let element = |verb: &str, rest: &str| format!("{verb} element inet switchyard {set} {{ tcp{rest} }}\n");
        // An element's time cannot be changed: it is taken away and put back, and for that it must be there.
        let mut text = element("add", "") + &element("delete", "");
        if alive {
            text.push_str(&element("add", &format!(" timeout {}s", ALIVE_FOR.as_secs())));
        }
        text.push_str(&changes(from, to));
        text
    }

    /// Removes the table.
    pub(super) fn removal(&self) -> String {
        self.step(false, &Held::default(), &Held::default()) + "delete table inet switchyard\n"
    }
}

/// Removes the table, whoever made it.
pub(super) const REMOVAL_OF_ANY: &str = "add table inet switchyard\ndelete table inet switchyard\n";
/// Removes the table of the bridge family, whoever made it.
pub(super) const REMOVAL_OF_BRIDGE: &str = "add table bridge switchyard\ndelete table bridge switchyard\n";

/// Makes the table of the bridge family, or puts it right.
///
/// An instance on a pod's own bridge sends its answer to the pod itself: the frame bears the pod's address, and the bridge hands it
/// over. So what the agent sends over a bridge is remembered, and the bridge's own hardware address, which such frames come from; what
/// answers is readdressed to the bridge, which makes it a packet for the node.
pub(super) fn bridge(captured: &Captured) -> String {
    let mut text = String::from("add table bridge switchyard\n");
    let (first, last, seconds) = (PORTS.start(), PORTS.end(), REMEMBERED_FOR.as_secs());
    for (n, kind) in [(4, "ipv4_addr"), (6, "ipv6_addr")] {
        line(&mut text, format_args!("add set bridge switchyard workloads{n} {{ type {kind}; }}"));
        line(&mut text, format_args!("flush set bridge switchyard workloads{n}"));
        let kept = format!("flags dynamic, timeout; timeout {seconds}s; size {REMEMBERED};");
        let tuple = format!("{kind} . inet_service . {kind} . inet_service");
        line(&mut text, format_args!("add set bridge switchyard own{n} {{ type {tuple}; {kept} }}"));
        line(&mut text, format_args!("add map bridge switchyard bridges{n} {{ type {kind} : ether_addr; {kept} }}"));
    }
    for (chain, hook) in [("own", "output priority filter"), ("answers", "prerouting priority dstnat")] {
        line(&mut text, format_args!("add chain bridge switchyard {chain} {{ type filter hook {hook}; }}"));
        line(&mut text, format_args!("flush chain bridge switchyard {chain}"));
    }
    for (ip, n) in [("ip", 4), ("ip6", 6)] {
        line(
            &mut text,
            format_args!(
                "add rule bridge switchyard own {ip} saddr @workloads{n} tcp sport {first}-{last} \
                 update @own{n} {{ {ip} saddr . tcp sport . {ip} daddr . tcp dport }} update @bridges{n} {{ {ip} saddr : ether saddr }}"
            ),
        );
        line(
            &mut text,
            format_args!(
                "add rule bridge switchyard answers {ip} daddr . tcp dport . {ip} saddr . tcp sport @own{n} \
                 ether daddr set {ip} daddr map @bridges{n} meta pkttype set host"
            ),
        );
        elements(
            &mut text,
            "add",
            &format!("bridge switchyard workloads{n}"),
            &workloads(n, captured, &Captured::default()),
        );
    }
    text
}

/// Adds what is new and deletes what is gone.
fn changes(from: &Held, to: &Held) -> String {
    let mut text = String::new();
    match (from.bridged, to.bridged) {
        (false, true) => text.push_str(&bridge(&to.captured)),
        (true, false) => text.push_str(REMOVAL_OF_BRIDGE),
        _ => {}
    }
    let stays_bridged = from.bridged && to.bridged;
    let (from, to) = (&from.captured, &to.captured);
    let service = |address: &SocketAddr| format!("{} . {}", address.ip(), address.port());
    for (n, is_family) in [(4, SocketAddr::is_ipv4 as fn(&SocketAddr) -> bool), (6, SocketAddr::is_ipv6)] {
        let of = |a: &Captured, b: &Captured| -> Vec<String> {
            a.services.difference(&b.services).filter(|s| is_family(s)).map(service).collect()
        };
        elements(&mut text, "delete", &format!("inet switchyard services{n}"), &of(from, to));
        elements(&mut text, "add", &format!("inet switchyard services{n}"), &of(to, from));
    }
    for table in ["inet"].into_iter().chain(stays_bridged.then_some("bridge")) {
        for n in [4, 6] {
            let set = format!("{table} switchyard workloads{n}");
            elements(&mut text, "delete", &set, &workloads(n, from, to));
            elements(&mut text, "add", &set, &workloads(n, to, from));
        }
    }
    text
}

/// The addresses of pods, of this family, that one has and the other has not.
fn workloads(n: u8, of: &Captured, not_of: &Captured) -> Vec<String> {
    let all = of.workloads.difference(&not_of.workloads);
    all.filter(|address| family(**address).1 == n).map(ToString::to_string).collect()
}

fn elements(text: &mut String, verb: &str, set: &str, elements: &[String]) {
    if !elements.is_empty() {
        line(text, format_args!("{verb} element {set} {{ {} }}", elements.join(", ")));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

/// How nft names the family of an address, and the number that our sets' names end with.
fn family(address: IpAddr) -> (&'static str, u8) {
    if address.is_ipv4() { ("ip", 4) } else { ("ip6", 6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(services: &[&str], workloads: &[&str]) -> Held {
        let captured = Captured {
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            workloads: workloads.iter().map(|w| w.parse().unwrap()).collect(),
        };
        Held { captured, bridged: false }
    }

    fn ruleset() -> Ruleset {
        Ruleset { owner: "1f".to_owned(), place: Place { port: 15001, ipv6: true } }
    }

    #[test]
    fn the_whole_table_as_text() {
        let text = ruleset().whole(&held(&["10.96.0.10:80", "[fd96::10]:80"], &["10.1.0.7", "fd01::7"]));
        expect_test::expect![[r#"
            add table inet switchyard
            delete table inet switchyard
            table inet switchyard {
            	set services4 { type ipv4_addr . inet_service; }
            	set services6 { type ipv6_addr . inet_service; }
            	set workloads4 { type ipv4_addr; }
            	set workloads6 { type ipv6_addr; }
            	set alive_1f { type inet_proto; flags timeout; }
            	chain capture {
            		type nat hook prerouting priority dstnat - 10;
            		ip saddr @workloads4 ip daddr . tcp dport @services4 meta l4proto @alive_1f dnat ip to 169.254.115.121:15001
            		ip6 saddr @workloads6 ip6 daddr . tcp dport @services6 meta l4proto @alive_1f dnat ip6 to [fd73:7974:6368::1]:15001
            	}
            	chain own {
            		type filter hook output priority mangle;
            		meta l4proto tcp ct direction original ip saddr @workloads4 fib saddr type != local ct mark set ct mark or 0x10
            		meta l4proto tcp ct direction original ip6 saddr @workloads6 fib saddr type != local ct mark set ct mark or 0x10
            	}
            	chain answers {
            		type filter hook prerouting priority mangle;
            		ip daddr @workloads4 meta l4proto tcp socket transparent 1 socket wildcard 0 meta mark set meta mark or 0x10
            		ip6 daddr @workloads6 meta l4proto tcp socket transparent 1 socket wildcard 0 meta mark set meta mark or 0x10
            		meta l4proto tcp ct direction reply ct mark and 0x10 != 0 meta mark set meta mark or 0x10
            	}
            }
            add element inet switchyard services4 { 10.96.0.10 . 80 }
            add element inet switchyard services6 { fd96::10 . 80 }
            add element inet switchyard workloads4 { 10.1.0.7 }
            add element inet switchyard workloads6 { fd01::7 }
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_step_renews_and_changes_only_what_is_different() {
        let from = held(&["10.96.0.10:80", "10.96.0.11:80"], &["10.1.0.7"]);
        let to = held(&["10.96.0.10:80", "10.96.0.12:443"], &["10.1.0.7", "10.1.0.8"]);
        expect_test::expect![[r"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
            add element inet switchyard alive_1f { tcp timeout 3s }
            delete element inet switchyard services4 { 10.96.0.11 . 80 }
            add element inet switchyard services4 { 10.96.0.12 . 443 }
            add element inet switchyard workloads4 { 10.1.0.8 }
        "]]
        .assert_eq(&ruleset().step(true, &from, &to));
    }

    #[test]
    fn giving_back_takes_the_element_away_and_nothing_else() {
        let same = held(&["10.96.0.10:80"], &["10.1.0.7"]);
        expect_test::expect![[r"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
        "]]
        .assert_eq(&ruleset().step(false, &same, &same));
    }

    #[test]
    fn on_a_node_with_a_bridge_answers_are_fetched_from_it() {
        let from = held(&["10.96.0.10:80"], &["10.1.0.7", "fd01::7"]);
        let to = Held { bridged: true, ..from.clone() };
        expect_test::expect![[r#"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
            add element inet switchyard alive_1f { tcp timeout 3s }
            add table bridge switchyard
            add set bridge switchyard workloads4 { type ipv4_addr; }
            flush set bridge switchyard workloads4
            add set bridge switchyard own4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; flags dynamic, timeout; timeout 120s; size 1048576; }
            add map bridge switchyard bridges4 { type ipv4_addr : ether_addr; flags dynamic, timeout; timeout 120s; size 1048576; }
            add set bridge switchyard workloads6 { type ipv6_addr; }
            flush set bridge switchyard workloads6
            add set bridge switchyard own6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; flags dynamic, timeout; timeout 120s; size 1048576; }
            add map bridge switchyard bridges6 { type ipv6_addr : ether_addr; flags dynamic, timeout; timeout 120s; size 1048576; }
            add chain bridge switchyard own { type filter hook output priority filter; }
            flush chain bridge switchyard own
            add chain bridge switchyard answers { type filter hook prerouting priority dstnat; }
            flush chain bridge switchyard answers
            add rule bridge switchyard own ip saddr @workloads4 tcp sport 61000-65535 update @own4 { ip saddr . tcp sport . ip daddr . tcp dport } update @bridges4 { ip saddr : ether saddr }
            add rule bridge switchyard answers ip daddr . tcp dport . ip saddr . tcp sport @own4 ether daddr set ip daddr map @bridges4 meta pkttype set host
            add element bridge switchyard workloads4 { 10.1.0.7 }
            add rule bridge switchyard own ip6 saddr @workloads6 tcp sport 61000-65535 update @own6 { ip6 saddr . tcp sport . ip6 daddr . tcp dport } update @bridges6 { ip6 saddr : ether saddr }
            add rule bridge switchyard answers ip6 daddr . tcp dport . ip6 saddr . tcp sport @own6 ether daddr set ip6 daddr map @bridges6 meta pkttype set host
            add element bridge switchyard workloads6 { fd01::7 }
        "#]].assert_eq(&ruleset().step(true, &from, &to));
        let more = Held { bridged: true, ..held(&["10.96.0.10:80"], &["10.1.0.8", "fd01::7"]) };
        expect_test::expect![[r#"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
            add element inet switchyard alive_1f { tcp timeout 3s }
            delete element inet switchyard workloads4 { 10.1.0.7 }
            add element inet switchyard workloads4 { 10.1.0.8 }
            delete element bridge switchyard workloads4 { 10.1.0.7 }
            add element bridge switchyard workloads4 { 10.1.0.8 }
        "#]]
        .assert_eq(&ruleset().step(true, &to, &more));
        expect_test::expect![[r#"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
            add element inet switchyard alive_1f { tcp timeout 3s }
            add table bridge switchyard
            delete table bridge switchyard
        "#]]
        .assert_eq(&ruleset().step(true, &more, &Held { bridged: false, ..more.clone() }));
    }
}
