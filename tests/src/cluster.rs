//! A real API server and etcd, started for one test and gone with it. There is no kubelet and no controller manager: Pods never run,
//! and what a controller manager would make (EndpointSlices, ServiceAccounts) a test makes itself.
//!
//! Found by `KUBEBUILDER_ASSETS`, else in the folder that `tests/envtest/fetch` fills. Where they are not there, the test is skipped
//! with one line that says so; with `SWITCHYARD_REQUIRE=cluster` that is a failure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::repository;
use crate::wait_for;

/// What is asked without kubectl.
mod ask;
/// What the controller asked for.
mod audit;
/// The chart, as helm renders it.
mod chart;

pub use ask::{at_once, review};
pub use audit::Right;

/// An API server with the three kinds, a namespace for the controller and one called `shop` that is opted in.
pub struct Cluster {
    folder: TempDir,
    parts: PathBuf,
    etcd: SocketAddr,
    address: SocketAddr,
    processes: Mutex<Vec<(&'static str, Child)>>,
}

impl Cluster {
    /// Starts one; `None`, with a line that says so, where the parts are not on this machine.
    ///
    /// # Panics
    /// When it does not start; and where the parts are missing and `SWITCHYARD_REQUIRE` asks for them.
    pub async fn start() -> Option<Self> {
        let Some(parts) = parts() else {
            let how = "tests/envtest/fetch builds them (ten minutes, once)";
            let required = std::env::var("SWITCHYARD_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|word| word == "cluster"), "no kube-apiserver and etcd here: {how}");
            // Not by a macro, whose output nobody sees when tests pass.
            drop(writeln!(std::io::stderr(), "SKIPPED: a test that needs kube-apiserver and etcd; {how}"));
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let cluster = Self { folder, parts, etcd: free_port(), address: free_port(), processes: Mutex::default() };
        cluster.start_etcd();
        cluster.start_api_server();
        cluster.ready().await;
        cluster.upgrade_schemas().await;
        cluster.apply(
            "apiVersion: v1
kind: Namespace
metadata: {name: switchyard}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {switchyard.dev/mesh: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: switchyard-agent, namespace: switchyard}
",
        );
        Some(cluster)
    }

    /// Applies the schemas as they are now, and waits until they are served.
    ///
    /// # Panics
    /// When they are not taken.
    pub async fn upgrade_schemas(&self) {
        self.apply_file(&repository().join("crds/yaml"));
        wait_for("the API server serves the three kinds", async || {
            // The last field of each kind to have come.
            ["routerules.spec.stickiness", "circuitpolicies.spec.slowCalls", "retrypolicies.spec.hedge"]
                .iter()
                .all(|field| self.try_kubectl(&["explain", field]).status.success())
        })
        .await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_etcd(&self) {
        let (client, peer) = (format!("http://{}", self.etcd), format!("http://{}", free_port()));
        let mut etcd = Command::new(self.parts.join("etcd"));
        etcd.arg(format!("--data-dir={}", self.path("etcd").display()));
        etcd.args(["--unsafe-no-fsync", "--log-level=warn"]);
        etcd.args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")]);
        etcd.arg(format!("--listen-peer-urls={peer}"));
        self.spawn("etcd", etcd);
    }

    /// Starts the API server: at the beginning, and again after [`Cluster::stop_api_server`].
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_api_server(&self) {
        let key = self.path("sa.key");
        if !key.exists() {
            let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output().unwrap();
            assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
            std::fs::write(self.path("tokens.csv"), "secret,admin,admin,system:masters\n").unwrap();
            std::fs::write(self.path("audit.yaml"), audit::POLICY).unwrap();
        }
        let mut server = Command::new(self.parts.join("kube-apiserver"));
        server.arg(format!("--etcd-servers=http://{}", self.etcd));
        server.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"]);
        server.arg(format!("--secure-port={}", self.address.port()));
        server.arg(format!("--cert-dir={}", self.path("certs").display()));
        server.arg(format!("--token-auth-file={}", self.path("tokens.csv").display()));
        server.args(["--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc"]);
        server.arg(format!("--service-account-key-file={}", key.display()));
        server.arg(format!("--service-account-signing-key-file={}", key.display()));
        server.args(["--service-cluster-ip-range=10.0.0.0/16", "--endpoint-reconciler-type=none"]);
        server.arg("--disable-admission-plugins=ServiceAccount");
        server.arg(format!("--audit-policy-file={}", self.path("audit.yaml").display()));
        server.arg(format!("--audit-log-path={}", self.path("audit.log").display()));
        self.spawn("kube-apiserver", server);
    }

    /// Takes the API server away, as a crash does.
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn stop_api_server(&self) {
        let mut processes = self.processes.lock().unwrap();
        let at = processes.iter().position(|(name, _)| *name == "kube-apiserver").unwrap();
        let (_, mut server) = processes.remove(at);
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn spawn(&self, name: &'static str, mut command: Command) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        self.processes.lock().unwrap().push((name, child));
    }

    /// Waits until the API server answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ready(&self) {
        let certificate = self.path("certs/apiserver.crt");
        wait_for("the API server has a certificate", async || certificate.exists()).await;
        std::fs::write(self.kubeconfig(), self.config_of("secret")).unwrap();
        wait_for("the API server is ready", async || self.try_kubectl(&["get", "--raw", "/readyz"]).status.success())
            .await;
    }

    /// The configuration that kubectl and the controller reach it with.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    fn config_of(&self, token: &str) -> String {
        format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: \"https://{}\", certificate-authority: \"{}\"}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
            self.address,
            self.path("certs/apiserver.crt").display()
        )
    }

    /// The configuration of who has a token.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, name: &str, token: &str) -> PathBuf {
        let path = self.path(&format!("kubeconfig-{name}"));
        std::fs::write(&path, self.config_of(token)).unwrap();
        path
    }

    /// A program of the parts, such as helm.
    pub fn part(&self, name: &str) -> PathBuf {
        self.parts.join(name)
    }

    /// Runs kubectl, whatever comes of it.
    ///
    /// # Panics
    /// When there is no kubectl.
    pub fn try_kubectl(&self, args: &[&str]) -> Output {
        let own = self.parts.join("kubectl");
        let kubectl = if own.exists() { own } else { PathBuf::from("kubectl") };
        Command::new(kubectl).args(args).env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs kubectl; what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies YAML; what kubectl says.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, yaml: &str) -> String {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.folder.path()).unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        self.apply_file(file.path())
    }

    /// Applies a file or a folder; what kubectl says.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply_file(&self, path: &Path) -> String {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", path.to_str().unwrap()])
    }

    /// Creates the objects of YAML, many of them quickly.
    ///
    /// # Panics
    /// When one is refused.
    pub fn create(&self, yaml: &str) {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.folder.path()).unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        self.kubectl(&["create", "--validate=false", "-f", file.path().to_str().unwrap()]);
    }

    /// An object.
    ///
    /// # Panics
    /// When it is not there.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", "-n", namespace, kind, name, "-o", "json"])).unwrap()
    }

    /// A node with an agent's Pod on it; the token that the kubelet would give the agent.
    ///
    /// # Panics
    /// When that cannot be.
    pub fn node(&self, name: &str) -> String {
        self.apply(&format!(
            "apiVersion: v1
kind: Node
metadata: {{name: {name}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: agent-{name}, namespace: switchyard}}
spec: {{nodeName: {name}, serviceAccountName: switchyard-agent, containers: [{{name: agent, image: agent}}]}}
"
        ));
        self.token(&[
            "--audience",
            "switchyard",
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &format!("agent-{name}"),
        ])
    }

    /// A token of the agents' ServiceAccount.
    ///
    /// # Panics
    /// When none is given.
    pub fn token(&self, how: &[&str]) -> String {
        let mut args = vec!["create", "token", "-n", "switchyard", "switchyard-agent"];
        args.extend(how);
        self.kubectl(&args)
    }

    /// A Service of namespace `shop` with a Pod for each version, as a Deployment and its Service would make them. The endpoints are
    /// addresses that nobody is at.
    ///
    /// # Panics
    /// When it is refused.
    pub fn service(&self, name: &str, versions: &[&str]) {
        let mut yaml = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}], selector: {{app: {name}}}}}
"
        );
        let mut endpoints = String::new();
        for (at, version) in versions.iter().enumerate() {
            let address = format!("10.244.0.{}", at + 1);
            let _ = write!(
                yaml,
                "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-{version}, namespace: shop, labels: {{app: {name}, version: {version}}}}}
spec: {{nodeName: elsewhere, containers: [{{name: c, image: c}}]}}
"
            );
            let _ = writeln!(
                endpoints,
                "- {{addresses: [{address}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {name}-{version}, namespace: shop}}}}"
            );
        }
        let _ = write!(
            yaml,
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{endpoints}"
        );
        self.apply(&yaml);
    }

    /// The authority that the controllers' certificates are of, in a file, once they have made it.
    pub async fn authority(&self) -> PathBuf {
        let file = self.path("ca.crt");
        wait_for("the controller tells of its authority", async || {
            let args =
                ["get", "configmap", "-n", "switchyard", "switchyard-controller-ca", "-o", "jsonpath={.data.ca\\.crt}"];
            let output = self.try_kubectl(&args);
            std::fs::write(&file, &output.stdout).unwrap();
            output.status.success() && !output.stdout.is_empty()
        })
        .await;
        file
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (name, child) in self.processes.lock().unwrap().iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(10).collect();
                eprintln!("--- the last of {name}'s log, newest first\n{}", tail.join("\n"));
            }
        }
    }
}

/// The folder with kube-apiserver, etcd, kubectl and helm.
fn parts() -> Option<PathBuf> {
    let whole = |folder: &Path| folder.join("kube-apiserver").exists() && folder.join("etcd").exists();
    let given = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).filter(|folder| whole(folder));
    given.or_else(|| {
        let found = Command::new(repository().join("tests/envtest/fetch")).arg("--where").output().ok()?;
        let folder = PathBuf::from(String::from_utf8(found.stdout).ok()?.trim());
        Some(folder).filter(|folder| found.status.success() && whole(folder))
    })
}

/// An API server takes no port 0, so one that is free now must do.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
