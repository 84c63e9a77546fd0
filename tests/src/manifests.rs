//! Folders of manifests, written as a user's tools write them: aside and renamed into place, unless a test wants it otherwise.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The Host of the Service that most tests use.
pub const HOST: &str = "my-service.shop";

/// A folder that goes away with the test.
#[derive(Debug)]
pub struct Manifests {
    folder: TempDir,
}

impl Default for Manifests {
    fn default() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }
}

impl Manifests {
    /// The Service `my-service` with one EndpointSlice for each instance, whose label says its version.
    pub fn of(instances: &[(&str, SocketAddr)]) -> Self {
        let manifests = Self::default();
        manifests.write("service.yaml", &service("my-service", "http", instances));
        manifests
    }

    /// The same for a Service whose instances speak HTTP/2.
    pub fn of_http2(instances: &[(&str, SocketAddr)]) -> Self {
        let manifests = Self::default();
        manifests.write("service.yaml", &service("my-service", "kubernetes.io/h2c", instances));
        manifests
    }

    /// With the rule of [`canary`] beside it.
    pub fn canary(instances: &[(&str, SocketAddr)], v2: u32, v1: u32) -> Self {
        let manifests = Self::of(instances);
        manifests.write("canary.yaml", &canary(v2, v1));
        manifests
    }

    /// Writes a file, aside and renamed.
    pub fn write(&self, name: &str, text: &str) {
        let aside = self.folder.path().join(format!(".{name}.part"));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, self.file(name)).unwrap();
    }

    /// Deletes a file.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// A file's path.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A Service of the namespace `shop` on port 80, and its instances.
pub fn service(name: &str, protocol: &str, instances: &[(&str, SocketAddr)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{switchyard.dev/mesh: enabled}}}}\n\
         spec:\n  ports:\n  - {{name: main, port: 80, appProtocol: {protocol}}}\n"
    );
    for (number, (version, address)) in instances.iter().enumerate() {
        text.push_str("---\n");
        text.push_str(&slice(name, &format!("{name}-{number}"), &format!("version: {version}"), *address));
    }
    text
}

/// One EndpointSlice with one ready endpoint and these labels.
pub fn slice(service: &str, name: &str, labels: &str, address: SocketAddr) -> String {
    slice_of(service, name, labels, address, "conditions: {ready: true}")
}

/// The same, with more about the endpoint.
pub fn slice_of(service: &str, name: &str, labels: &str, address: SocketAddr, endpoint: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata:\n  name: {name}\n  namespace: shop\n  labels: {{kubernetes.io/service-name: {service}, {labels}}}\n\
         addressType: IPv4\nendpoints:\n- {{addresses: [\"{ip}\"], {endpoint}}}\nports:\n- {{name: main, port: {port}}}\n"
    )
}

/// The mission's canary with these weights: requests with `x-version: v2`.
pub fn canary(v2: u32, v1: u32) -> String {
    rule(
        "canary-deployment",
        &format!(
            "  matches:\n  - headers: [{{type: Exact, name: x-version, value: v2}}]\n  destinations:\n  \
             - {{service: my-service, version: v2, weight: {v2}}}\n  - {{service: my-service, version: v1, weight: {v1}}}\n"
        ),
    )
}

/// A RouteRule for `my-service`; `rest` is more of its spec, indented by two.
pub fn rule(name: &str, rest: &str) -> String {
    object("RouteRule", name, &format!("  service: my-service\n{rest}"))
}

/// A CircuitPolicy for `my-service`.
pub fn circuit(rest: &str) -> String {
    object("CircuitPolicy", "circuit", &format!("  targetRefs: [{{kind: Service, name: my-service}}]\n{rest}"))
}

/// A RetryPolicy for `my-service`, with short waits unless `rest` says otherwise.
pub fn retry(rest: &str) -> String {
    let mut spec = "  targetRefs: [{kind: Service, name: my-service}]\n".to_owned();
    if !rest.contains("initialDelay") {
        spec.push_str("  initialDelay: 10ms\n");
    }
    spec.push_str(rest);
    object("RetryPolicy", "retry", &spec)
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    let mut text = String::new();
    writeln!(text, "apiVersion: switchyard.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}")
        .unwrap();
    writeln!(text, "spec:\n{spec}").unwrap();
    text
}
