//! Processes under test: started with ports that the system chooses, watched, and killed when the test is done with them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::{binaries, binary, client, wait_for};

/// A process. It is killed when this is dropped; if the test is failing by then, what the process said is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// Starts one of the binaries, in the repository's root.
    pub fn start(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_with(name, args, &[])
    }

    /// The same, with more in its environment.
    fn start_with(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>, more: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(binary(name));
        command.envs(more.iter().copied()).args(args);
        Self::spawn(name, command)
    }

    /// The same, in a network namespace.
    pub fn start_in(namespace: &str, name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = Command::new("ip");
        // It becomes the binary, under the same process number.
        command.args(["netns", "exec", namespace]).arg(binary(name)).args(args);
        Self::spawn(name, command)
    }

    fn spawn(name: &str, mut command: Command) -> Self {
        command.current_dir(binaries::repository()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::default();
        listen(child.stdout.take().unwrap(), &said);
        listen(child.stderr.take().unwrap(), &said);
        Self { name: name.to_owned(), child: Mutex::new(child), said }
    }

    /// Everything it has said so far, standard output and standard error as they came.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it has said all of these words after it had said so many bytes.
    pub async fn says(&self, after: usize, words: &[&str]) {
        wait_for(&format!("{} says {words:?}", self.name), async || {
            let ended = self.ended();
            let said = self.said();
            let all = words.iter().all(|word| said[after..].contains(word));
            assert!(all || ended.is_none(), "{} ended with {ended:?}, and did not say {words:?}", self.name);
            all
        })
        .await;
    }

    /// The addresses of its line `listening NAME=ADDR ...`.
    async fn listening(&self) -> HashMap<String, SocketAddr> {
        let mut addresses = HashMap::new();
        wait_for("a process says where it listens", async || {
            let ended = self.ended();
            assert!(ended.is_none(), "{} ended at once, with {ended:?}", self.name);
            let said = self.said();
            let Some(line) = said.lines().find_map(|line| line.strip_prefix("listening ")) else { return false };
            let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
            addresses = pairs.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).collect();
            true
        })
        .await;
        addresses
    }

    /// Its exit status, once it has ended.
    fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().unwrap()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&self) {
        let mut child = self.child();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child().id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Asks it to end as `kill` does, and waits until it has.
    pub async fn terminate(&self) -> ExitStatus {
        self.signal("TERM");
        let mut status = None;
        wait_for("a process ends after SIGTERM", async || {
            status = self.ended();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Waits until it has ended, and well.
    pub async fn exits_well(&self) {
        wait_for(&format!("{} ends", self.name), async || self.ended().is_some()).await;
        let status = self.ended().unwrap();
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.said());
    }

    /// The time that it has spent on any core, its threads and the kernel's part together.
    pub fn cpu(&self) -> std::time::Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child().id())).unwrap();
        // Behind the name, which may contain anything; in hundredths of a second (proc(5)).
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        std::time::Duration::from_millis(ticks * 10)
    }

    /// What it takes up.
    pub fn usage(&self) -> Usage {
        let process = format!("/proc/{}", self.child().id());
        let files = std::fs::read_dir(format!("{process}/fd")).unwrap();
        // One may be closed while it is looked at.
        let files: Vec<_> = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).collect();
        let sockets = files.iter().filter(|file| file.to_string_lossy().starts_with("socket:")).count() as u64;
        let threads = std::fs::read_dir(format!("{process}/task")).unwrap().count() as u64;
        Usage { memory_kib: self.memory().now_kib, files: files.len() as u64, sockets, threads }
    }

    /// Its memory.
    pub fn memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child().id())).unwrap();
        let kibibytes = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Memory { now_kib: kibibytes("VmRSS:"), peak_kib: kibibytes("VmHWM:") }
    }
}

/// What a process takes up.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// In memory (the resident set), in KiB.
    pub memory_kib: u64,
    /// Open files of any kind, and the sockets among them.
    pub files: u64,
    /// See `files`.
    pub sockets: u64,
    /// Threads.
    pub threads: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, files, sockets, threads } = self;
        let mebibytes = *memory_kib as f64 / 1024.0;
        write!(f, "{mebibytes:.1} MiB, {files} files, {sockets} of them sockets, {threads} threads")
    }
}

/// What a process has in memory (the resident set), in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// At the moment.
    pub now_kib: u64,
    /// The most it ever was.
    pub peak_kib: u64,
}

fn listen(pipe: impl Read + Send + 'static, said: &Arc<Mutex<String>>) {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap();
            said.push_str(&line);
            said.push('\n');
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("---- {} said:\n{said}----", self.name);
        }
    }
}

/// Runs a command to its end.
pub fn output(name: &str, args: &[&str]) -> std::process::Output {
    Command::new(binary(name)).args(args).current_dir(binaries::repository()).stdin(Stdio::null()).output().unwrap()
}

/// `switchyard run`, or `switchyard-agent`: a process that takes requests.
#[derive(Debug)]
pub struct Switchyard {
    /// The process.
    pub process: Process,
    /// Where requests go in.
    pub http: SocketAddr,
    /// Where the admin endpoints are.
    pub admin: SocketAddr,
    _state: Option<TempDir>,
}

impl Switchyard {
    /// `switchyard run` on a folder; returns when it is ready.
    pub async fn run(manifests: &Path) -> Self {
        Self::run_with(manifests, &[]).await
    }

    /// The same, with more arguments. Its state goes away with it, unless they say where to keep it.
    pub async fn run_with(manifests: &Path, more: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut args = vec!["run", "--manifests", path(manifests)];
        args.extend(["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        args.extend(more);
        if !more.contains(&"--state") {
            args.extend(["--state", path(state.path())]);
        }
        let running = Self::of(Process::start("switchyard", args), Some(state)).await;
        running.ready().await;
        running
    }

    /// `switchyard-agent`; it may take a while until it is [`Switchyard::ready`].
    pub async fn agent(controller: SocketAddr, state: &Path) -> Self {
        Self::of(Self::agent_process(controller, state), None).await
    }

    /// The same of a node of this name, once it is ready.
    pub async fn agent_of(controller: SocketAddr, node: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let controller = format!("http://{controller}");
        let mut args = vec!["--controller", &controller, "--state", path(state.path()), "--drain", "1", "--node", node];
        args.extend(["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let process = Process::start("switchyard-agent", args);
        let agent = Self::of(process, Some(state)).await;
        agent.ready().await;
        agent
    }

    /// The same, not waited for in any way.
    pub fn agent_process(controller: SocketAddr, state: &Path) -> Process {
        let controller = format!("http://{controller}");
        let mut args = vec!["--controller", &controller, "--state", path(state), "--drain", "1"];
        args.extend(["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        Process::start("switchyard-agent", args)
    }

    /// `switchyard-agent` of a cluster's node, with the token that the kubelet would give it.
    pub async fn of_node(cluster: &Cluster, controllers: &[&Controller], node: &str, token: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("token");
        std::fs::write(&file, token).unwrap();
        let authority = cluster.authority().await;
        let addresses: Vec<_> =
            controllers.iter().map(|controller| format!("https://localhost:{}", controller.agents.port())).collect();
        let mut args = vec!["--controller".to_owned(), addresses.join(","), "--node".to_owned(), node.to_owned()];
        args.extend(
            ["--ca", path(&authority), "--token", path(&file), "--state", path(state.path())].map(str::to_owned),
        );
        args.extend(["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain", "1"].map(str::to_owned));
        Self::of(Process::start("switchyard-agent", args), Some(state)).await
    }

    /// `switchyard-agent` in a network namespace.
    pub async fn agent_in(namespace: &str, args: &[&str]) -> Self {
        Self::of(Process::start_in(namespace, "switchyard-agent", args), None).await
    }

    async fn of(process: Process, state: Option<TempDir>) -> Self {
        let addresses = process.listening().await;
        Self { process, http: addresses["http"], admin: addresses["admin"], _state: state }
    }

    /// Whether `/readyz` says so.
    pub async fn is_ready(&self) -> bool {
        client::get(self.admin, "admin", "/readyz").await.is_ok_and(|reply| reply.status == 200)
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        wait_for("/readyz says ready", async || self.is_ready().await).await;
    }

    async fn page(&self, path: &str) -> String {
        let reply = client::get(self.admin, "admin", path).await.unwrap();
        assert_eq!(reply.status, 200, "{path}");
        reply.text()
    }

    /// A metric, summed over all series that have these labels; 0 if there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.page("/metrics").await, name, labels)
    }

    /// What `/config` shows.
    pub async fn config(&self) -> Value {
        serde_json::from_str(&self.page("/config").await).unwrap()
    }

    /// What `/circuits` shows.
    pub async fn circuits(&self) -> Vec<Value> {
        serde_json::from_str(&self.page("/circuits").await).unwrap()
    }

    /// What it shows of an instance; nothing if there is no circuit.
    pub async fn circuit_of(&self, instance: SocketAddr) -> Option<Value> {
        let target = instance.to_string();
        self.circuits().await.into_iter().find(|circuit| circuit["target"] == target.as_str())
    }

    /// The state of an instance's circuit; nothing if there is none.
    pub async fn circuit(&self, instance: SocketAddr) -> Option<String> {
        let here = self.circuit_of(instance).await?;
        Some(here["state"].as_str().unwrap().to_owned())
    }

    /// Waits until the circuit of an instance is in this state.
    pub async fn circuit_is(&self, instance: SocketAddr, state: &str) {
        let what = format!("the circuit of {instance} is {state}");
        wait_for(&what, async || self.circuit(instance).await.as_deref() == Some(state)).await;
    }

    /// The destinations in force for a Service of the namespace `shop`, by its first rule, else by default: versions and weights.
    pub async fn split(&self, service: &str) -> Vec<(String, u64)> {
        let config = self.config().await;
        let label = format!("shop/{service}");
        let Some(service) = config["services"].as_array().unwrap().iter().find(|s| s["service"] == label.as_str())
        else {
            return Vec::new();
        };
        let destinations = match service["rules"].as_array().unwrap().first() {
            Some(rule) => &rule["destinations"],
            None => &service["default"],
        };
        let one = |d: &Value| (d["version"].as_str().unwrap().to_owned(), d["weight"].as_u64().unwrap());
        destinations.as_array().unwrap().iter().map(one).collect()
    }

    /// Waits until the first rule of `my-service` splits so between v2 and v1.
    pub async fn splits(&self, v2: u64, v1: u64) {
        let wanted = [("v2".to_owned(), v2), ("v1".to_owned(), v1)];
        let what = format!("v2 has the weight {v2} and v1 {v1}");
        wait_for(&what, async || self.split("my-service").await == wanted).await;
    }
}

/// `switchyard-controller`.
#[derive(Debug)]
pub struct Controller {
    /// The process.
    pub process: Process,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// Where the admin endpoints are.
    pub admin: SocketAddr,
    /// Where an API server asks, in a cluster.
    pub webhook: Option<SocketAddr>,
    /// Where a kubelet and a Prometheus ask, in a cluster.
    pub health: Option<SocketAddr>,
    _home: Option<TempDir>,
}

impl Controller {
    /// Starts it on a folder. With port 0 the system chooses where it listens. What it keeps goes away with it.
    pub async fn start(manifests: &Path, listen: SocketAddr) -> Self {
        let home = tempfile::tempdir().unwrap();
        let started = Self::start_at_home(manifests, listen, home.path()).await;
        Self { _home: Some(home), ..started }
    }

    /// The same for a user whose state home is this.
    pub async fn start_at_home(manifests: &Path, listen: SocketAddr, home: &Path) -> Self {
        let listen = listen.to_string();
        let args = ["--manifests", path(manifests), "--listen", &listen, "--admin", "127.0.0.1:0"];
        Self::of(Process::start_with("switchyard-controller", args, &[("XDG_STATE_HOME", home)])).await
    }

    /// Starts it on a cluster.
    pub async fn in_cluster(cluster: &Cluster, identity: &str) -> Self {
        Self::with_rights(&cluster.kubeconfig(), identity).await
    }

    /// The same, as whoever this configuration is of.
    pub async fn with_rights(kubeconfig: &Path, identity: &str) -> Self {
        let any = "127.0.0.1:0";
        let args = ["--listen", any, "--admin", any, "--webhook", any, "--health", any, "--identity", identity];
        let environment = [("KUBECONFIG", kubeconfig)];
        let args = ["--kubernetes"].into_iter().chain(args);
        Self::of(Process::start_with("switchyard-controller", args, &environment)).await
    }

    async fn of(process: Process) -> Self {
        let addresses = process.listening().await;
        let (agents, admin) = (addresses["agents"], addresses["admin"]);
        let of = |name| addresses.get(name).copied();
        Self { process, agents, admin, webhook: of("webhook"), health: of("health"), _home: None }
    }

    /// What `/config` shows.
    pub async fn config(&self) -> Value {
        serde_json::from_str(&client::get(self.admin, "admin", "/config").await.unwrap().text()).unwrap()
    }

    /// A metric, as for [`Switchyard::metric`].
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, &[]).await
    }

    /// The same, of the series that have these labels.
    pub async fn metric_of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&client::get(self.admin, "admin", "/metrics").await.unwrap().text(), name, labels)
    }
}

fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name));
    let series = series.filter(|rest| rest.starts_with(['{', ' ']));
    let wanted = |rest: &&str| labels.iter().all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
    series.filter(wanted).map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder of `examples/`.
pub fn example(name: &str) -> PathBuf {
    binaries::repository().join("examples").join(name)
}
