//! The agent's metrics in the OpenMetrics text format. Names and labels are part of what users build on; labels come from
//! configuration only.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Admin;
use crate::admit::breaker::State;
use crate::record::metrics::{BOUNDS_MICROS, CLASSES, Latency, Series};
use crate::{clock, memory};

/// What `/metrics` answers.
pub(super) async fn text(registry: Arc<Registry>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Collects when asked.
#[derive(Debug)]
pub(super) struct Collector(pub(super) Admin);

/// No counter has an exemplar.
type NoLabels = [(&'static str, &'static str); 0];
type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

fn counter(encoder: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_counter::<NoLabels, u64, u64>(&value, None)
}

fn gauge(encoder: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: i64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_gauge(&value)
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.retries(&mut encoder)?;
        self.circuits(&mut encoder)?;
        self.degraded(&mut encoder)?;
        self.link(&mut encoder)
    }
}

impl Collector {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.shared.runtime.all_series();
        let help = "Requests by where they went, or would have gone, and the class of the status that the caller saw.";
        let mut metric = encoder.encode_descriptor("switchyard_requests", help, None, MetricType::Counter)?;
        for series in &all {
            let [service, rule, destination, version] = series.labels();
            for (class, count) in CLASSES.iter().zip(series.classes()).filter(|(_, count)| *count > 0) {
                let labels: Labels<'_, 5> = [
                    ("service", service),
                    ("rule", rule),
                    ("destination", destination),
                    ("version", version),
                    ("class", class),
                ];
                counter(&mut metric, &labels, count)?;
            }
        }
        let help = "How long requests took, from their head to the last byte of the reply.";
        let name = "switchyard_request_duration_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for series in &all {
            let [service, rule, destination, version] = series.labels();
            let labels: Labels<'_, 4> =
                [("service", service), ("rule", rule), ("destination", destination), ("version", version)];
            let latency = series.latency();
            let count = latency.buckets.iter().sum();
            if count > 0 {
                let sum = latency.sum_micros as f64 / 1e6;
                metric.encode_family(&labels)?.encode_histogram::<NoLabels>(sum, count, &buckets(&latency), None)?;
            }
        }
        let help = "Requests that the agent answered itself, by the word in x-switchyard-reason.";
        let mut metric = encoder.encode_descriptor("switchyard_refusals", help, None, MetricType::Counter)?;
        for (reason, count) in self.0.shared.unrouted.refusals() {
            counter(&mut metric, &[("service", ""), ("reason", reason)], count)?;
        }
        for service in self.0.shared.runtime.all_services() {
            for (reason, count) in service.retries.refusals() {
                counter(&mut metric, &[("service", service.label.as_str()), ("reason", reason)], count)?;
            }
        }
        let help =
            "Of those, requests for which there was too much under way, by the field of the policy that bounds it.";
        let mut metric = encoder.encode_descriptor("switchyard_overloads", help, None, MetricType::Counter)?;
        for service in self.0.shared.runtime.all_services() {
            for (bound, count) in service.retries.overloads().into_iter().filter(|(_, count)| *count > 0) {
                counter(&mut metric, &[("service", service.label.as_str()), ("bound", bound)], count)?;
            }
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.shared.runtime.all_series();
        type Counts = fn(&Series) -> Vec<(&'static str, u64)>;
        let (connections, bytes): (Counts, Counts) = (|s| s.connections().to_vec(), |s| s.bytes().to_vec());
        let copies: Counts = |s| s.copies().to_vec();
        let mirrored = "Copies of requests by where rules mirror them to, and what became of them.";
        for (name, help, label, counts) in [
            ("switchyard_tcp_connections", "Connections that are not HTTP.", "outcome", connections),
            ("switchyard_tcp_bytes", "Bytes of connections that are not HTTP.", "direction", bytes),
            ("switchyard_mirrored_requests", mirrored, "outcome", copies),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                let [service, rule, destination, version] = series.labels();
                for (word, count) in counts(series).into_iter().filter(|(_, count)| *count > 0) {
                    let labels: Labels<'_, 5> = [
                        ("service", service),
                        ("rule", rule),
                        ("destination", destination),
                        ("version", version),
                        (label, word),
                    ];
                    counter(&mut metric, &labels, count)?;
                }
            }
        }
        Ok(())
    }

    fn retries(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Retries by what made them and what came of them; an outcome other than success or failure says why \
                    there was none.";
        let mut metric = encoder.encode_descriptor("switchyard_retries", help, None, MetricType::Counter)?;
        for service in self.0.shared.runtime.all_services() {
            for (reason, outcome, count) in service.retries.retries() {
                let labels: Labels<'_, 3> = [("service", &service.label), ("reason", reason), ("outcome", outcome)];
                counter(&mut metric, &labels, count)?;
            }
        }
        Ok(())
    }

    fn circuits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.shared.runtime.circuits();
        let now = self.0.shared.runtime.millis(clock::now());
        let named: Vec<(String, &str, &str)> =
            all.iter().map(|c| (c.service.to_string(), c.target.as_str(), &*c.settings.name)).collect();
        let help = "State of a circuit: 0 closed, 1 open, 2 half-open.";
        let mut metric = encoder.encode_descriptor("switchyard_circuit_state", help, None, MetricType::Gauge)?;
        for (circuit, (service, target, policy)) in all.iter().zip(&named) {
            let value = match (circuit.held(now), circuit.breaker.state()) {
                (Some(held), _) => i64::from(held.open),
                (None, State::Closed) => 0,
                (None, State::Open { .. } | State::Unhealthy { .. }) => 1,
                (None, State::HalfOpen { .. }) => 2,
            };
            let labels: Labels<'_, 3> = [("service", service), ("target", target), ("policy", policy)];
            gauge(&mut metric, &labels, value)?;
        }
        let help = "1 while a circuit is held by hand.";
        let mut metric = encoder.encode_descriptor("switchyard_circuit_held", help, None, MetricType::Gauge)?;
        for (circuit, (service, target, policy)) in all.iter().zip(&named) {
            let labels: Labels<'_, 3> = [("service", service), ("target", target), ("policy", policy)];
            gauge(&mut metric, &labels, i64::from(circuit.held(now).is_some()))?;
        }
        let help = "1 while a circuit would be open if not too many others of its set were.";
        let mut metric = encoder.encode_descriptor("switchyard_circuit_kept_in", help, None, MetricType::Gauge)?;
        for (circuit, (service, target, policy)) in all.iter().zip(&named) {
            let labels: Labels<'_, 3> = [("service", service), ("target", target), ("policy", policy)];
            gauge(&mut metric, &labels, i64::from(circuit.breaker.is_kept_in()))?;
        }
        for (name, help, of) in [
            ("switchyard_circuit_others_failing", "Other nodes that see an instance fail.", 0),
            (
                "switchyard_circuit_others_asked",
                "Other nodes that have asked an instance of which some see it fail.",
                1,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (circuit, (service, target, policy)) in all.iter().zip(&named) {
                let others = circuit.breaker.others();
                if others.asked > 0 {
                    let labels: Labels<'_, 3> = [("service", service), ("target", target), ("policy", policy)];
                    gauge(&mut metric, &labels, i64::from([others.failing, others.asked][of]))?;
                }
            }
        }
        let help = "Health checks of an instance.";
        let mut metric = encoder.encode_descriptor("switchyard_health_checks", help, None, MetricType::Counter)?;
        for (service, target, policy) in &named {
            let Some(checks) = self.0.shared.checks.of(service, target) else { continue };
            for (outcome, count) in [("good", checks.good), ("failed", checks.failed)] {
                let labels: Labels<'_, 4> =
                    [("service", service), ("target", target), ("policy", policy), ("outcome", outcome)];
                counter(&mut metric, &labels, count)?;
            }
        }
        let help = "Changes of a circuit, by the state it changed to.";
        let name = "switchyard_circuit_transitions";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (service, target, policy) in &named {
            let Some(latest) = self.0.shared.transitions.of(service, target) else { continue };
            for (to, count) in ["open", "half-open", "closed"].into_iter().zip(latest.counts) {
                let labels: Labels<'_, 4> = [("service", service), ("target", target), ("policy", policy), ("to", to)];
                counter(&mut metric, &labels, count)?;
            }
        }
        Ok(())
    }

    /// What callers got in place of what they asked for, and what is under way of what policies bound.
    fn degraded(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let services = self.0.shared.runtime.all_services();
        let help = "Tries at instances that would be out if not too many others of their set were.";
        let mut metric = encoder.encode_descriptor("switchyard_panic_requests", help, None, MetricType::Counter)?;
        for service in services.iter().filter(|service| service.retries.panics() > 0) {
            counter(&mut metric, &[("service", service.label.as_str())], service.retries.panics())?;
        }
        let help = "Requests that something else stood in for, since a circuit was open.";
        let mut metric = encoder.encode_descriptor("switchyard_fallbacks", help, None, MetricType::Counter)?;
        for service in &services {
            for (to, count) in service.retries.fallbacks().into_iter().filter(|(_, count)| *count > 0) {
                counter(&mut metric, &[("service", service.label.as_str()), ("to", to)], count)?;
            }
        }
        let help = "What is under way of what a policy bounds.";
        let mut metric = encoder.encode_descriptor("switchyard_in_use", help, None, MetricType::Gauge)?;
        for (service, target, in_use) in self.0.shared.runtime.all_in_use() {
            let (service, counts) = (service.to_string(), in_use.counts());
            let of = [("connections", counts.connections), ("pending", counts.pending), ("requests", counts.requests)];
            for (what, count) in of {
                let labels: Labels<'_, 3> = [("service", &service), ("target", &target), ("of", what)];
                gauge(&mut metric, &labels, i64::from(count))?;
            }
        }
        let help = "How many requests may be under way, where that is found out by their latency.";
        let mut metric = encoder.encode_descriptor("switchyard_concurrency_limit", help, None, MetricType::Gauge)?;
        for (service, target, in_use) in self.0.shared.runtime.all_in_use() {
            if let Some(limit) = in_use.limit_found() {
                let service = service.to_string();
                let labels: Labels<'_, 2> = [("service", &service), ("target", &target)];
                gauge(&mut metric, &labels, i64::from(limit))?;
            }
        }
        Ok(())
    }

    fn link(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let link = &self.0.link;
        let revision = self.0.shared.table.load().revision;
        if let Some(interception) = &self.0.shared.interception {
            let help = "1 while connections of this node's pods are taken in.";
            let taking = i64::from(interception.taking.load(Relaxed));
            let name = "switchyard_agent_intercepting";
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&taking)?;
        }
        let gauges = [
            ("switchyard_config_revision", "The controller's revision that is in force.", revision),
            (
                "switchyard_agent_controller_connected",
                "1 while there is a stream to the controller.",
                u64::from(link.connected.load(Relaxed)),
            ),
        ];
        let memory = [
            ("switchyard_agent_memory_bytes", "What the process has in memory of its own.", memory::used()),
            (
                "switchyard_agent_memory_limit_bytes",
                "What it may have: near that it lets go what is not taken.",
                self.0.shared.memory.map(|limit| limit.bytes),
            ),
        ];
        let memory = memory.into_iter().filter_map(|(name, help, value)| Some((name, help, value?)));
        for (name, help, value) in gauges.into_iter().chain(memory) {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let counters = [
            ("switchyard_agent_resources_received", "Resources that the controller sent.", &link.resources_received),
            ("switchyard_agent_resources_rejected", "Resources that were turned down.", &link.resources_rejected),
            ("switchyard_agent_updates_received", "Updates that the controller sent.", &link.updates_received),
            ("switchyard_agent_streams", "Streams to a controller that were opened.", &link.streams),
            (
                "switchyard_agent_connections_broken_off",
                "Callers' connections that were broken off because memory was short.",
                &self.0.shared.broken_off,
            ),
        ];
        for (name, help, value) in counters {
            let value = value.load(Relaxed);
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabels, u64, u64>(&value, None)?;
        }
        Ok(())
    }
}

/// Bounds in seconds with how many fell between each and the one before.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
    bounds.zip(latency.buckets).collect()
}
