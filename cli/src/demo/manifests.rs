//! The demo's YAML: what anybody would write for these services, in a folder that stays when the demo is over.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::samples::{Instance, SERVICE};

/// The namespace of everything in the demo.
pub(crate) const NAMESPACE: &str = "shop";

/// The first line of each file. A file without it is somebody's own, and is not written over.
const MARK: &str = "# Written by `switchyard demo`.";

const RULE: &str = "canary-deployment.yaml";

/// How long the demo's circuits stay open, in seconds.
pub(crate) const CIRCUIT_TIMEOUT_S: u64 = 3;

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Writes all of it, with so many percent for version v2.
    ///
    /// # Errors
    /// If the folder cannot be written, or holds files of the same names that are not the demo's.
    pub(crate) fn write(path: &Path, instances: &[Instance], v2_percent: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        let folder = Self { path: path.to_owned() };
        folder.put("my-service.yaml", &service(instances))?;
        folder.put("circuit.yaml", &circuit())?;
        folder.put("retry.yaml", RETRY)?;
        folder.set_weight(v2_percent)?;
        Ok(folder)
    }

    /// Edits the rule on disk: so many percent for version v2, the rest for v1.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn set_weight(&self, v2_percent: u32) -> anyhow::Result<()> {
        self.put(RULE, &rule(v2_percent))
    }

    /// The file that [`Folder::set_weight`] edits.
    pub(crate) fn rule_file(&self) -> PathBuf {
        self.path.join(RULE)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Written aside and renamed, so that nobody reads half a file.
    fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (file, aside) = (self.path.join(name), self.path.join(format!(".{name}.new")));
        match std::fs::read_to_string(&file) {
            Ok(before) => ensure!(
                before.starts_with(MARK),
                "{} is there already and is not the demo's; choose another folder with --dir",
                file.display()
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
        std::fs::write(&aside, format!("{MARK}\n{text}"))
            .and_then(|()| std::fs::rename(&aside, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn rule(v2_percent: u32) -> String {
    format!(
        "\
# Change the weights and save: the new split is in force at once, and no request is lost.
apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: canary-deployment, namespace: {NAMESPACE}}}
spec:
  service: {SERVICE}
  destinations:
  - {{service: {SERVICE}, version: v2, weight: {v2_percent}}}
  - {{service: {SERVICE}, version: v1, weight: {}}}
",
        100 - v2_percent
    )
}

fn circuit() -> String {
    format!(
        "\
# An instance that fails five times in a row is out. After the timeout it is probed, and two good answers bring it back.
apiVersion: switchyard.dev/v1alpha1
kind: CircuitPolicy
metadata: {{name: my-service, namespace: {NAMESPACE}}}
spec:
  targetRefs: [{{kind: Service, name: {SERVICE}}}]
  failureThreshold: 5
  successThreshold: 2
  timeout: {CIRCUIT_TIMEOUT_S}s      # the default is 60s; here somebody is watching
  errorRateThreshold: \"50%\"
"
    )
}

const RETRY: &str = "\
# What fails is tried again, at another instance where there is one.
apiVersion: switchyard.dev/v1alpha1
kind: RetryPolicy
metadata: {name: my-service, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: my-service}]
  maxRetries: 3
  strategy: Exponential
  initialDelay: 25ms   # the default is 1s; here somebody is watching
  jitter: \"10%\"
";

fn service(instances: &[Instance]) -> String {
    let mut text = format!(
        "\
# The service and its instances. In a cluster Kubernetes writes the EndpointSlices; here each sample has one, and its
# labels say the version.
apiVersion: v1
kind: Service
metadata:
  name: {SERVICE}
  namespace: {NAMESPACE}
  labels: {{switchyard.dev/mesh: enabled}}
spec:
  ports:
  - {{name: http, port: 80, appProtocol: http}}
"
    );
    for Instance { name, version, address, .. } in instances {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {SERVICE}-{name}
  namespace: {NAMESPACE}
  labels: {{kubernetes.io/service-name: {SERVICE}, version: {version}}}
addressType: IPv4
endpoints:
- addresses: [\"{}\"]
  conditions: {{ready: true}}
ports:
- {{name: http, port: {}}}
",
            address.ip(),
            address.port()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_file_that_is_not_the_demos_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let own = temporary.path().join("retry.yaml");
        std::fs::write(&own, "kind: RetryPolicy\n").unwrap();
        let refused = Folder::write(temporary.path(), &[], 5).unwrap_err().to_string();
        assert!(refused.contains("retry.yaml is there already"), "{refused}");
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "kind: RetryPolicy\n");
    }

    #[test]
    fn the_demo_may_write_over_its_own_files() {
        let temporary = tempfile::tempdir().unwrap();
        Folder::write(temporary.path(), &[], 5).unwrap();
        let folder = Folder::write(temporary.path(), &[], 20).unwrap();
        let text = std::fs::read_to_string(folder.rule_file()).unwrap();
        assert!(text.contains("version: v2, weight: 20}") && text.contains("version: v1, weight: 80}"), "{text}");
    }
}
