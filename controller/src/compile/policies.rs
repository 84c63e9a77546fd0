//! Policies: which are attached to a Service, and which of two holds.
//!
//! Invariants: no two compiled policies of a kind have the same target, and the more specific target comes first
//! (`of_two_policies_for_one_target_the_oldest_holds`).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use switchyard_crds::circuit_policy::{CircuitScope, Correlation, Fallback, HealthCheck};
use switchyard_crds::hold::Hold;
use switchyard_crds::retry_policy::Strategy;
use switchyard_crds::route_rule::HeaderValue;
use switchyard_crds::target::TargetRef;
use switchyard_crds::validate::conditions::Conditions;
use switchyard_crds::values::Duration;
use switchyard_crds::{CircuitPolicy, Finding, ObjectName, Reason, RetryPolicy};
use switchyard_proto::v1;

use crate::compile::destinations::{Present, selector};
use crate::compile::order::Age;
use crate::compile::{name_of, qualified, warning};
use crate::object::{Service, ServiceKey};
use crate::world::{World, fallback_service};

/// The circuit policies of a Service, the most specific target first.
pub fn circuits(
    world: &World,
    service: &Service,
    present: &mut Present<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<v1::CircuitPolicy> {
    let claims = world
        .circuit_policies_of(&service.key())
        .flat_map(|policy| claims(policy, Age::of(&policy.metadata), &policy.spec.target_refs, service));
    for policy in world.circuit_policies_of(&service.key()) {
        check_fallback(world, policy, present, findings);
    }
    let held = attach(claims.collect(), service, present, findings);
    held.into_iter().map(|claim| circuit(claim.policy, target(&claim))).collect()
}

/// The retry policies of a Service, the most specific target first.
pub fn retries(
    world: &World,
    service: &Service,
    present: &mut Present<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<v1::RetryPolicy> {
    let claims = world
        .retry_policies_of(&service.key())
        .flat_map(|policy| claims(policy, Age::of(&policy.metadata), &policy.spec.target_refs, service));
    let held = attach(claims.collect(), service, present, findings);
    held.into_iter().map(|claim| retry(claim.policy, target(&claim))).collect()
}

/// A policy that wants a target.
struct Claim<'a, K> {
    policy: &'a K,
    name: ObjectName,
    age: Age<'a>,
    /// Position among the policy's `targetRefs`.
    at: usize,
    target: &'a TargetRef,
}

fn claims<'a, K>(policy: &'a K, age: Age<'a>, targets: &'a [TargetRef], service: &Service) -> Vec<Claim<'a, K>>
where
    K: kube::Resource<DynamicType = ()>,
{
    let of_service = targets.iter().enumerate().filter(|(_, target)| target.name == service.name);
    of_service.map(|(at, target)| Claim { policy, name: name_of(policy), age, at, target }).collect()
}

/// Of several claims to one target the oldest policy's holds; the others are reported.
fn attach<'a, K>(
    mut claims: Vec<Claim<'a, K>>,
    service: &Service,
    present: &mut Present<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<Claim<'a, K>> {
    claims.sort_by_key(|claim| (claim.age, claim.at));
    let mut held: BTreeMap<_, Claim<'a, K>> = BTreeMap::new();
    for claim in claims {
        let (version, subset) = (claim.target.version.as_deref(), &claim.target.subset);
        let field = format!("spec.targetRefs[{}]", claim.at);
        if version.is_some() || !subset.is_empty() {
            present.check(service, (version, subset), (&claim.name, &field, "name"), findings);
        }
        let conditions = subset.len() + usize::from(version.is_some());
        let specific_first = (Reverse(conditions), Reverse(version), subset);
        match held.get(&specific_first) {
            None => {
                held.insert(specific_first, claim);
            }
            // The same target twice in one policy says the same twice.
            Some(older) if older.name == claim.name => {}
            Some(older) => {
                let older = qualified(&older.name);
                let message =
                    format!("{older} has the same target and comes first (by age, then by name), so it holds");
                let mut finding = warning(&claim.name, Reason::Conflicted, field, message);
                finding.others = vec![older];
                findings.push(finding);
            }
        }
    }
    held.into_values().collect()
}

fn target<K>(claim: &Claim<'_, K>) -> v1::Selector {
    selector(claim.target.version.as_deref(), &claim.target.subset)
}

fn health_check(spec: &HealthCheck) -> v1::HealthCheck {
    use v1::health_check::Check;
    // Exactly one is given: another object would not have been taken.
    let check = match (&spec.path, &spec.grpc) {
        (Some(path), _) => Check::Path(path.clone()),
        (None, Some(grpc)) => Check::GrpcService(grpc.service.clone().unwrap_or_default()),
        (None, None) => Check::Tcp(true),
    };
    v1::HealthCheck {
        check: Some(check),
        interval_ms: spec.interval.as_millis(),
        timeout_ms: spec.timeout.as_millis(),
        unhealthy_threshold: count(spec.unhealthy_threshold),
        healthy_threshold: count(spec.healthy_threshold),
    }
}

fn circuit(policy: &CircuitPolicy, target: v1::Selector) -> v1::CircuitPolicy {
    let spec = &policy.spec;
    let scope = match spec.scope {
        CircuitScope::Instance => v1::CircuitScope::Instance,
        CircuitScope::Destination => v1::CircuitScope::Destination,
    };
    v1::CircuitPolicy {
        name: qualified(&name_of(policy)),
        target: Some(target),
        scope: scope.into(),
        failure_threshold: count(spec.failure_threshold),
        error_rate_threshold_ppm: spec.error_rate_threshold.ppm(),
        minimum_requests: count(spec.minimum_requests),
        window_ms: spec.window.as_millis(),
        timeout_ms: spec.timeout.as_millis(),
        backoff_multiplier_milli: thousandths(spec.backoff.multiplier),
        backoff_max_timeout_ms: spec.backoff.max_timeout.as_millis(),
        backoff_jitter_ppm: spec.backoff.jitter.ppm(),
        success_threshold: count(spec.success_threshold),
        half_open_requests: count(spec.half_open_requests),
        failures: Some(conditions(&spec.failures)),
        slow_calls: spec.slow_calls.map(|slow| v1::SlowCalls {
            duration_ms: slow.duration.as_millis(),
            rate_threshold_ppm: slow.rate_threshold.ppm(),
        }),
        max_ejection_ppm: Some(spec.max_ejection_percent.ppm()),
        health_check: spec.health_check.as_ref().map(health_check),
        limits: spec.limits.map(|limits| v1::Limits {
            max_connections: count(limits.max_connections),
            max_pending_requests: count(limits.max_pending_requests),
            max_requests: count(limits.max_requests),
            adaptive: limits.adaptive.map(|adaptive| v1::AdaptiveLimit {
                min_requests: count(adaptive.min_requests),
                latency_tolerance_ppm: adaptive.latency_tolerance.ppm(),
            }),
        }),
        // Agents let go by themselves when the time comes, whether there is a controller or not: nothing here depends on a clock.
        hold: Hold::of(policy).map(|hold| v1::Hold {
            open: hold.open,
            until_unix_ms: hold.until.map(|until| until.as_millisecond()),
            note: hold.note(),
        }),
        fallback: spec.fallback.as_ref().map(|given| fallback(policy, given)),
        correlated: spec.correlation == Correlation::Enabled && spec.scope == CircuitScope::Instance,
    }
}

fn fallback(policy: &CircuitPolicy, given: &Fallback) -> v1::Fallback {
    let destination = given.destination.as_ref().map(|to| {
        let ServiceKey { namespace, name: service } = fallback_service(policy, to);
        let selector = Some(selector(to.version.as_deref(), &BTreeMap::new()));
        v1::Destination { namespace, service, selector, ..v1::Destination::default() }
    });
    let field =
        |header: &HeaderValue| v1::HeaderField { name: header.name.to_ascii_lowercase(), value: header.value.clone() };
    let reply = given.response.as_ref().map(|response| v1::DirectResponse {
        status: count(response.status),
        headers: response.headers.iter().map(field).collect(),
        body: response.body.clone(),
    });
    v1::Fallback { destination, reply }
}

/// Reports a fallback to what does not exist.
fn check_fallback(world: &World, policy: &CircuitPolicy, present: &mut Present<'_>, findings: &mut Vec<Finding>) {
    let Some(to) = policy.spec.fallback.as_ref().and_then(|fallback| fallback.destination.as_ref()) else { return };
    let (name, field) = (name_of(policy), "spec.fallback.destination");
    let key = fallback_service(policy, to);
    match world.service(&key) {
        Some(service) => {
            present.check(service, (to.version.as_deref(), &BTreeMap::new()), (&name, field, "service"), findings);
        }
        None => {
            let message = format!("there is no Service {key}; while the circuit is open callers get 503");
            findings.push(warning(&name, Reason::UnresolvedRef, format!("{field}.service"), message));
        }
    }
}

/// A retry policy for this part of a Service.
pub fn retry(policy: &RetryPolicy, target: v1::Selector) -> v1::RetryPolicy {
    let spec = &policy.spec;
    let strategy = match spec.strategy {
        Strategy::Fixed => v1::BackoffStrategy::Fixed,
        Strategy::Linear => v1::BackoffStrategy::Linear,
        Strategy::Exponential => v1::BackoffStrategy::Exponential,
        Strategy::Fibonacci => v1::BackoffStrategy::Fibonacci,
        Strategy::DecorrelatedJitter => v1::BackoffStrategy::DecorrelatedJitter,
    };
    let limit = |duration: Option<Duration>| duration.map(Duration::as_millis).filter(|millis| *millis > 0);
    v1::RetryPolicy {
        name: qualified(&name_of(policy)),
        target: Some(target),
        max_retries: count(spec.max_retries),
        strategy: strategy.into(),
        initial_delay_ms: spec.initial_delay.as_millis(),
        max_delay_ms: spec.max_delay.as_millis(),
        multiplier_milli: thousandths(spec.multiplier),
        jitter_ppm: spec.jitter.ppm(),
        per_try_timeout_ms: limit(spec.per_try_timeout),
        timeout_ms: limit(spec.timeout),
        retry_on: Some(conditions(&spec.retry_on)),
        methods: spec.methods.clone(),
        respect_retry_after: spec.respect_retry_after,
        avoid_previous_instances: spec.avoid_previous_instances,
        rechoose_destination: spec.rechoose_destination,
        budget_ratio_ppm: spec.budget.ratio.ppm(),
        budget_min_per_second: count(spec.budget.min_per_second),
        budget_window_ms: spec.budget.window.as_millis(),
        max_body_bytes: spec.max_body_bytes.bytes(),
        hedge: spec.hedge.map(|hedge| v1::Hedge { after_ms: hedge.after.as_millis(), max: count(hedge.max) }),
    }
}

fn conditions(words: &[String]) -> v1::Conditions {
    let read = Conditions::read(words);
    v1::Conditions {
        server_error: read.server_error,
        connect_failure: read.connect_failure,
        timeout: read.timeout,
        reset: read.reset,
        refused_stream: read.refused_stream,
        statuses: read.statuses.into_iter().map(u32::from).collect(),
        grpc_statuses: read.grpc_statuses.into_iter().map(u32::from).collect(),
    }
}

/// The schema's bounds hold here already; a negative number cannot come.
fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// From 1 to 100 by the schema, so it fits; a float's cast saturates.
fn thousandths(factor: f64) -> u32 {
    (factor * 1000.0).round() as u32
}
