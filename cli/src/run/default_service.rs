//! Whether the Service of `--default-service` is there: a name that is misspelt would turn every such request away in silence.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use switchyard_agent::table::ServiceKey;
use switchyard_controller::run::{Handle, Report};

/// Looks after each publication, and tells when the Service is gone and when it is back.
pub(super) struct Watch {
    service: ServiceKey,
    controller: OnceLock<Handle>,
    is_there: AtomicBool,
}

impl Watch {
    /// Expects the Service to be there.
    pub(super) fn new(service: ServiceKey) -> Self {
        Self { service, controller: OnceLock::new(), is_there: AtomicBool::new(true) }
    }

    /// From now on looks at what this controller publishes.
    pub(super) fn follow(&self, controller: Handle) {
        // It is told once; a second controller would be another watch's.
        let _ = self.controller.set(controller);
    }

    /// What is to be said after a report, if anything.
    pub(super) fn after(&self, report: &Report) -> Option<String> {
        let published = self.controller.get().filter(|_| matches!(report, Report::Published { .. }))?.snapshot()?;
        let is_it = |key: &switchyard_controller::object::ServiceKey| {
            (&key.namespace, &key.name) == (&self.service.namespace, &self.service.name)
        };
        let is_there = published.resources().any(|(key, _)| is_it(&key.service));
        if self.is_there.swap(is_there, Relaxed) == is_there {
            return None;
        }
        let service = &self.service;
        Some(match is_there {
            true => format!("--default-service {service}: it is there now"),
            false => format!(
                "warning: --default-service {service}: there is no such Service, so requests whose Host names none are answered 404"
            ),
        })
    }
}
