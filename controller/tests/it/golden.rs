//! What manifests become, as text that people can read: each `golden/NAME.yaml` is compiled and compared with
//! `golden/NAME.txt`. `UPDATE_EXPECT=1` writes the texts anew; the difference in review is the change of behaviour.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use switchyard_controller::compile::{Compiled, service};
use switchyard_controller::load;
use switchyard_crds::Finding;
use switchyard_proto::v1;

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let loaded = load(&[folder.join(name).with_extension("yaml")]).unwrap();
    let mut text = String::new();
    for key in loaded.world.services() {
        if loaded.world.service(&key).is_some() {
            writeln!(text, "Service {key}").unwrap();
            show(&mut text, &service(&loaded.world, &key));
        }
    }
    for finding in &loaded.findings {
        show_finding(&mut text, finding);
    }
    expect_file![folder.join(name).with_extension("txt")].assert_eq(&text);
}

#[test]
fn every_golden_file_is_compiled_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        check(name.file_stem().unwrap().to_str().unwrap());
    }
}

fn show(text: &mut String, compiled: &Compiled) {
    let Compiled { routes, instances, .. } = compiled;
    for port in &routes.ports {
        writeln!(text, "  port {} \"{}\" {:?}", port.port, port.name, port.protocol()).unwrap();
    }
    for entry in &routes.matches {
        let rule = &routes.rules[entry.rule as usize];
        writeln!(text, "  match {} -> {}", conditions(entry), rule.name).unwrap();
    }
    for rule in &routes.rules {
        writeln!(text, "  rule {}{}", rule.name, extras(rule)).unwrap();
        if let Some(stickiness) = &rule.stickiness {
            writeln!(text, "    sticks by {:?}", stickiness.on.as_ref().unwrap()).unwrap();
        }
        rule.filters.iter().for_each(|filter| writeln!(text, "    {}", self::filter(filter)).unwrap());
        for to in &rule.destinations {
            writeln!(text, "    {} to {}", to.weight, destination(to)).unwrap();
            to.filters.iter().for_each(|filter| writeln!(text, "      {}", self::filter(filter)).unwrap());
        }
    }
    for policy in &routes.circuits {
        let failures = policy.failures.as_ref().map(words).unwrap_or_default();
        writeln!(
            text,
            "  circuit {}{} {:?}: opens after {} or {} ppm of {} in {} ms, for {} ms x{} up to {} ms (jitter {} ppm); \
             closes after {}, {} at a time; failures: {failures}",
            policy.name,
            selector(policy.target.as_ref()),
            policy.scope(),
            policy.failure_threshold,
            policy.error_rate_threshold_ppm,
            policy.minimum_requests,
            policy.window_ms,
            policy.timeout_ms,
            f64::from(policy.backoff_multiplier_milli) / 1000.0,
            policy.backoff_max_timeout_ms,
            policy.backoff_jitter_ppm,
            policy.success_threshold,
            policy.half_open_requests,
        )
        .unwrap();
    }
    for policy in &routes.retries {
        writeln!(text, "  {}", retry(policy)).unwrap();
    }
    for instance in &instances.instances {
        let ports: Vec<_> = instance.ports.iter().map(|port| format!("{}:{}", port.service_port, port.port)).collect();
        let state = match (instance.ready, instance.terminating) {
            (true, false) => "ready",
            (true, true) => "ready, terminating",
            (false, false) => "not ready",
            (false, true) => "terminating",
        };
        let labels: Vec<_> = instance.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let Instance { address, version, zone, name } = Instance::of(instance);
        let (ports, labels) = (ports.join(" "), labels.concat());
        writeln!(text, "  instance {address} [{ports}]{version}{labels}{zone}{name} {state}").unwrap();
    }
}

fn destination(to: &v1::Destination) -> String {
    let port = if to.port == 0 { String::new() } else { format!(":{}", to.port) };
    format!("{}/{}{port}{}", to.namespace, to.service, selector(to.selector.as_ref()))
}

fn filter(filter: &v1::Filter) -> String {
    match filter.filter.as_ref().unwrap() {
        v1::filter::Filter::RequestMirror(mirror) => {
            format!("mirror {} ppm to {}", mirror.ppm, destination(mirror.destination.as_ref().unwrap()))
        }
        other => format!("{other:?}"),
    }
}

/// What is left out where it is empty.
struct Instance {
    address: String,
    version: String,
    zone: String,
    name: String,
}

impl Instance {
    fn of(instance: &v1::Instance) -> Self {
        let given = |what: &str, value: &str| if value.is_empty() { String::new() } else { format!(" {what}={value}") };
        Self {
            address: instance.address.clone(),
            version: given("version", &instance.version),
            zone: given("zone", &instance.zone),
            name: given("pod", &instance.name),
        }
    }
}

fn conditions(entry: &v1::Match) -> String {
    let mut parts = Vec::new();
    if entry.port != 0 {
        parts.push(format!("port {}", entry.port));
    }
    if let Some(path) = &entry.path {
        parts.push(format!("path {}", string_match(path)));
    }
    if !entry.method.is_empty() {
        parts.push(entry.method.clone());
    }
    let named = |what: &str, named: &v1::NamedMatch| {
        format!("{what} {} {}", named.name, named.r#match.as_ref().map(string_match).unwrap_or_default())
    };
    parts.extend(entry.headers.iter().map(|header| named("header", header)));
    parts.extend(entry.query_params.iter().map(|param| named("query", param)));
    if parts.is_empty() {
        parts.push("everything".to_owned());
    }
    format!("#{} {}", entry.position, parts.join(", "))
}

fn string_match(text: &v1::StringMatch) -> String {
    match text.r#type() {
        v1::MatchType::Exact => format!("= {}", text.value),
        v1::MatchType::Prefix => format!("begins {}", text.value),
        v1::MatchType::RegularExpression => format!("~ {}", text.value),
        v1::MatchType::Present => "is there".to_owned(),
        v1::MatchType::Absent => "is not there".to_owned(),
        v1::MatchType::Unspecified => "?".to_owned(),
    }
}

fn extras(rule: &v1::Rule) -> String {
    let mut text = String::new();
    for (what, limit) in [("request", rule.request_timeout_ms), ("try", rule.backend_request_timeout_ms)] {
        if let Some(limit) = limit {
            write!(text, ", {what} within {limit} ms").unwrap();
        }
    }
    if let Some(policy) = &rule.retry {
        write!(text, ", {}", retry(policy)).unwrap();
    }
    if rule.fail_when_unavailable {
        text.push_str(", fails when unavailable");
    }
    text
}

fn selector(selector: Option<&v1::Selector>) -> String {
    let Some(selector) = selector else { return " (no selector)".to_owned() };
    let version = Some(selector.version.as_str()).filter(|version| !version.is_empty());
    let labels = selector.labels.iter().map(|(name, value)| format!(" {name}={value}"));
    version.map(|version| format!(" version {version}")).into_iter().chain(labels).collect()
}

fn retry(policy: &v1::RetryPolicy) -> String {
    let limits = [("try", policy.per_try_timeout_ms), ("all", policy.timeout_ms)];
    let limits = limits.iter().filter_map(|(what, limit)| limit.map(|limit| format!(", {what} within {limit} ms")));
    format!(
        "retry {}{}: {} {:?} from {} ms x{} up to {} ms (jitter {} ppm){}; on: {}; of: {}; budget {} ppm + {}/s in {} ms; \
         bodies to {}{}{}{}{}",
        policy.name,
        selector(policy.target.as_ref()),
        policy.max_retries,
        policy.strategy(),
        policy.initial_delay_ms,
        f64::from(policy.multiplier_milli) / 1000.0,
        policy.max_delay_ms,
        policy.jitter_ppm,
        limits.collect::<String>(),
        policy.retry_on.as_ref().map(words).unwrap_or_default(),
        policy.methods.join(" "),
        policy.budget_ratio_ppm,
        policy.budget_min_per_second,
        policy.budget_window_ms,
        policy.max_body_bytes,
        if policy.respect_retry_after { ", Retry-After" } else { "" },
        if policy.avoid_previous_instances { ", other instances" } else { "" },
        if policy.rechoose_destination { ", other destinations" } else { "" },
        policy.hedge.map(|hedge| format!("; hedge after {} ms, {}", hedge.after_ms, hedge.max)).unwrap_or_default(),
    )
}

fn words(conditions: &v1::Conditions) -> String {
    let named = [
        ("ServerError", conditions.server_error),
        ("ConnectFailure", conditions.connect_failure),
        ("Timeout", conditions.timeout),
        ("Reset", conditions.reset),
        ("RefusedStream", conditions.refused_stream),
    ];
    let named = named.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned());
    let statuses = conditions.statuses.iter().map(u32::to_string);
    let grpc = conditions.grpc_statuses.iter().map(|status| format!("grpc:{status}"));
    named.chain(statuses).chain(grpc).collect::<Vec<_>>().join(" ")
}

fn show_finding(text: &mut String, finding: &Finding) {
    let severity = format!("{:?}", finding.severity).to_lowercase();
    let line = finding.place.as_ref().map(|place| format!("{}:{}", place.line, place.column)).unwrap_or_default();
    let others = if finding.others.is_empty() { String::new() } else { format!(" [{}]", finding.others.join(", ")) };
    let (reason, object, field, message) = (finding.reason, &finding.object, &finding.field, &finding.message);
    writeln!(text, "{severity} {reason:?} at {line}: {object}: {field}: {message}{others}").unwrap();
}
