//! What is asked of the kernel, through the commands that administrators use: `nft` for the table, `ip` for addresses, rules and
//! routes. They run on the keeper's own thread; should one hang, nothing is renewed, and traffic goes back to the plain path.

use std::io::Write;
use std::process::{Command, Stdio};

use super::place::{ADDRESS_V4, ADDRESS_V6, MARK, ROUTING_TABLE, RULE_PREFERENCE, has_ipv6};
use super::ruleset::REMOVAL_OF_BRIDGE;

/// Runs a transaction of nft's.
///
/// # Errors
/// What nft said, or why it could not be run. Nothing has changed then.
pub(super) fn nft(text: &str) -> Result<(), String> {
    run("nft", &["-f", "-"], text).map(drop)
}

/// Whether nft and the kernel would take the transaction.
///
/// # Errors
/// What they said.
pub(super) fn nft_check(text: &str) -> Result<(), String> {
    run("nft", &["-c", "-f", "-"], text).map(drop)
}

/// The table as it is; nothing when there is none.
///
/// # Errors
/// It could not be looked at.
pub(super) fn table() -> Result<Option<String>, String> {
    match run("nft", &["list", "table", "inet", "switchyard"], "") {
        Ok(listing) => Ok(Some(listing)),
        Err(error) if error.contains("No such file or directory") && !error.starts_with("cannot run") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether any of this node's devices is a bridge, which may connect pods with each other past the node.
pub(super) fn has_bridge() -> bool {
    let devices = std::fs::read_dir("/sys/class/net");
    devices.is_ok_and(|devices| devices.flatten().any(|device| device.path().join("bridge").exists()))
}

/// Makes the addresses, rules and routes, or leaves them as they are.
///
/// # Errors
/// What `ip` said.
pub(super) fn make_way(ipv6: bool) -> Result<(), String> {
    for family in families(ipv6) {
        let address = address(family);
        let mut replace = vec![family, "address", "replace", &address, "dev", "lo"];
        // Nobody who asks for any address of this node is given this one.
        replace.extend(if family == "-4" { ["scope", "host"].iter() } else { ["nodad", "preferred_lft", "0"].iter() });
        run("ip", &replace, "")?;
        let (mark, table, preference) = (mark(), ROUTING_TABLE.to_string(), RULE_PREFERENCE.to_string());
        run("ip", &[family, "route", "replace", "local", "default", "dev", "lo", "table", &table], "")?;
        let rule = [family, "rule", "add", "pref", &preference, "fwmark", &mark, "lookup", &table];
        match run("ip", &rule, "") {
            Err(error) if !error.contains("File exists") => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes them, and what answers are fetched from bridges with. What is not there is passed over.
pub(super) fn remove_way() {
    if let Err(error) = nft(REMOVAL_OF_BRIDGE) {
        tracing::debug!(error, "not removed; most likely this kernel has no tables for bridges");
    }
    for family in families(has_ipv6()) {
        let (mark, table, preference) = (mark(), ROUTING_TABLE.to_string(), RULE_PREFERENCE.to_string());
        let address = address(family);
        for command in [
            &[family, "rule", "del", "pref", &preference, "fwmark", &mark, "lookup", &table][..],
            &[family, "route", "del", "local", "default", "dev", "lo", "table", &table],
            &[family, "address", "del", &address, "dev", "lo"],
        ] {
            if let Err(error) = run("ip", command, "") {
                tracing::debug!(error, "not removed; most likely it was not there");
            }
        }
    }
}

fn families(ipv6: bool) -> impl Iterator<Item = &'static str> {
    ["-4"].into_iter().chain(ipv6.then_some("-6"))
}

fn address(family: &str) -> String {
    if family == "-4" { format!("{ADDRESS_V4}/32") } else { format!("{ADDRESS_V6}/128") }
}

fn mark() -> String {
    format!("{MARK:#x}/{MARK:#x}")
}

fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot run {program}: {error}");
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), said.split_whitespace().collect::<Vec<_>>().join(" ")))
}
