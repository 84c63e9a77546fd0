//! The nftables table as text, in nft's own language: all of it, and what changes it.
//!
//! Keeps true:
//! - Everything is in one table of our own, `inet switchyard`; nothing else is named here.
//! - A text is one transaction: all of it holds, or none.
//! - The set `alive` bears its owner's mark in its name, and every text but the one that makes the table asks for that set
//!   first: whoever is no longer the owner changes nothing, and finds out that way.
//! - The capture rule asks that set, whose one element expires unless it is renewed ([`ALIVE_FOR`]).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::place::{MARK, Place};
use crate::table::Captured;

/// How long connections are taken in after the last renewal. Renewed every second, so two may be late; and together with what it
/// takes to see that a worker is stuck, traffic is back on the plain path within five seconds.
const ALIVE_FOR: Duration = Duration::from_secs(3);

/// What is in the table, and who owns it.
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
    pub(super) fn whole(&self, captured: &Captured) -> String {
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
        text.push_str(&changes(&Captured::default(), captured));
        text
    }

    /// Takes connections in for a while more, or no longer, and changes what is taken in.
    pub(super) fn step(&self, alive: bool, from: &Captured, to: &Captured) -> String {
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
        self.step(false, &Captured::default(), &Captured::default()) + "delete table inet switchyard\n"
    }
}

/// Removes the table, whoever made it.
pub(super) fn removal_of_any() -> &'static str {
    "add table inet switchyard\ndelete table inet switchyard\n"
}

/// Adds what is new and deletes what is gone.
fn changes(from: &Captured, to: &Captured) -> String {
    let mut text = String::new();
    let service = |address: &SocketAddr| format!("{} . {}", address.ip(), address.port());
    for (n, is_family) in [(4, SocketAddr::is_ipv4 as fn(&SocketAddr) -> bool), (6, SocketAddr::is_ipv6)] {
        let of = |a: &Captured, b: &Captured| -> Vec<String> {
            a.services.difference(&b.services).filter(|s| is_family(s)).map(service).collect()
        };
        elements(&mut text, "delete", &format!("services{n}"), &of(from, to));
        elements(&mut text, "add", &format!("services{n}"), &of(to, from));
    }
    for (n, is_family) in [(4, IpAddr::is_ipv4 as fn(&IpAddr) -> bool), (6, IpAddr::is_ipv6)] {
        let of = |a: &Captured, b: &Captured| -> Vec<String> {
            a.workloads.difference(&b.workloads).filter(|w| is_family(w)).map(ToString::to_string).collect()
        };
        elements(&mut text, "delete", &format!("workloads{n}"), &of(from, to));
        elements(&mut text, "add", &format!("workloads{n}"), &of(to, from));
    }
    text
}

fn elements(text: &mut String, verb: &str, set: &str, elements: &[String]) {
    if !elements.is_empty() {
        line(text, format_args!("{verb} element inet switchyard {set} {{ {} }}", elements.join(", ")));
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

    fn captured(services: &[&str], workloads: &[&str]) -> Captured {
        Captured {
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            workloads: workloads.iter().map(|w| w.parse().unwrap()).collect(),
        }
    }

    fn ruleset() -> Ruleset {
        Ruleset { owner: "1f".to_owned(), place: Place { port: 15001, ipv6: true } }
    }

    #[test]
    fn the_whole_table_as_text() {
        let text = ruleset().whole(&captured(&["10.96.0.10:80", "[fd96::10]:80"], &["10.1.0.7", "fd01::7"]));
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
        let from = captured(&["10.96.0.10:80", "10.96.0.11:80"], &["10.1.0.7"]);
        let to = captured(&["10.96.0.10:80", "10.96.0.12:443"], &["10.1.0.7", "10.1.0.8"]);
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
        let same = captured(&["10.96.0.10:80"], &["10.1.0.7"]);
        expect_test::expect![[r"
            add element inet switchyard alive_1f { tcp }
            delete element inet switchyard alive_1f { tcp }
        "]]
        .assert_eq(&ruleset().step(false, &same, &same));
    }
}
