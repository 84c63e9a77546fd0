//! A node and its pods, as network namespaces: `a` and `b` call, `v1` and `v2` serve. Pods are connected as Calico does it: the node's
//! end of a pod's link has no address; or as the CNI plugin `bridge` and flannel do it: by a bridge of the node's. The plain path is a table of its own, as kube-proxy makes one: it leads every Service to
//! v1. So who answered says which way a connection went: v1 the plain way, v2 by the rule that tests give the agent.
//!
//! Keeps true: addresses are used inside the namespaces only; the namespaces go away with the test, and those that a killed test
//! left behind go away with the next one.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;

use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::client::full;

/// Whether namespaces can be made here. When not, it says so once, unless they are required: then the test fails.
///
/// # Panics
/// When `SWITCHYARD_REQUIRE` has `netns`, and they cannot.
pub fn can_be_made() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let works = |command: &str| Command::new("sh").args(["-c", command]).output().is_ok_and(|o| o.status.success());
        let name = format!("sy{}-try", std::process::id());
        let can = works(&format!("nft --version && ip netns add {name} && ip netns exec {name} nft list tables; ok=$?; ip netns del {name}; exit $ok"));
        let required = std::env::var("SWITCHYARD_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one.trim() == "netns"));
        let what = "network namespaces with nftables cannot be made here; as root: apt-get install -y nftables iproute2";
        assert!(can || !required, "{what}");
        if !can {
            // Not by a macro, whose output nobody sees when tests pass.
            drop(writeln!(std::io::stderr(), "SKIPPED: the tests of interception; {what}"));
        }
        can
    })
}

/// A network namespace, and a thread inside it.
#[derive(Debug)]
pub struct Namespace {
    /// Its name, as `ip netns` has it.
    pub name: String,
    inside: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new(name: String) -> Self {
        run("ip", &["netns", "add", &name], "");
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let path = format!("/run/netns/{name}");
        let thread = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tell.send(runtime.handle().clone()).unwrap();
            // An error means that the test is over.
            drop(runtime.block_on(stopped));
        });
        let namespace = Self { inside: told.recv().unwrap(), name, stop: Some(stop), thread: Some(thread) };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs this inside: its sockets are the namespace's.
    pub async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        match self.inside.spawn(future).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Runs `ip` for it.
    pub fn ip(&self, args: &str) -> String {
        let args: Vec<&str> = ["-n", &self.name].into_iter().chain(args.split(' ')).collect();
        run("ip", &args, "")
    }

    /// Runs a program inside.
    pub fn exec(&self, program: &str, input: &str) -> String {
        let args: Vec<&str> = ["netns", "exec", &self.name].into_iter().chain(program.split(' ')).collect();
        run("ip", &args, input)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(Command::new("ip").args(["netns", "del", &self.name]).output());
    }
}

fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A pod: a namespace with one link, to the node.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub space: Namespace,
    /// Its addresses.
    pub v4: IpAddr,
    /// Its addresses.
    pub v6: IpAddr,
}

/// A node with its pods.
#[derive(Debug)]
pub struct Node {
    /// The node itself.
    pub space: Namespace,
    /// A pod that calls.
    pub a: Pod,
    /// Another one.
    pub b: Pod,
    /// The instance that the plain path leads to.
    pub v1: Pod,
    /// The instance that the rule leads to.
    pub v2: Pod,
}

/// The node's own address, of each family.
pub const NODE: [&str; 2] = ["10.99.0.1", "fd99::1"];

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// Makes them, with a link from the node to each pod.
    pub fn new() -> Self {
        Self::made(pod)
    }

    /// Makes them, with all pods on one bridge.
    pub fn bridged() -> Self {
        Self::made(pod_on_bridge)
    }

    fn made(pod: fn(&Namespace, &str, u8) -> Pod) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_what_was_left();
        let prefix = format!("sy{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let space = Namespace::new(format!("{prefix}-node"));
        space.exec("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", "");
        // Where the rest of the world would be.
        space.ip("link add up0 type veth peer name world0");
        for end in ["world0", "up0"] {
            // Else the kernel adds addresses of its own, a while later.
            space.ip(&format!("link set {end} addrgenmode none"));
        }
        space.ip("link set world0 up");
        space.ip("link set up0 up");
        for (family, address, length) in [("-4", NODE[0], 24), ("-6", NODE[1], 64)] {
            let nodad = if family == "-6" { " nodad" } else { "" };
            space.ip(&format!("{family} addr add {address}/{length} dev up0{nodad}"));
            space.ip(&format!("{family} route add default dev up0"));
        }
        let pod = |number, name: &str| pod(&space, &format!("{prefix}-{name}"), number);
        let (a, b, v1, v2) = (pod(1, "a"), pod(2, "b"), pod(3, "v1"), pod(4, "v2"));
        Self { a, b, v1, v2, space }
    }

    /// The plain path: connections to this port of any Service go to v1 at that port.
    pub fn plain_path(&self, port: u16, to: u16) {
        let rules = |v4: IpAddr, v6: IpAddr| {
            format!(
                "ip daddr 10.96.0.0/16 tcp dport {port} dnat ip to {v4}:{to}\n\
                 ip6 daddr fd96::/64 tcp dport {port} dnat ip6 to [{v6}]:{to}\n"
            )
        };
        let rules = rules(self.v1.v4, self.v1.v6);
        let table = format!(
            "table inet plain {{\n\
             chain in {{ type nat hook prerouting priority dstnat;\n{rules}}}\n\
             chain out {{ type nat hook output priority -100;\n{rules}}}\n}}\n"
        );
        self.space.exec("nft -f -", &table);
    }

    /// All that an agent could leave behind, line by line: tables, rules, routes, addresses. Not when elements expire.
    pub fn traces(&self) -> Vec<String> {
        let mut all: Vec<String> = self.space.exec("nft list ruleset", "").lines().map(str::to_owned).collect();
        all.retain(|line| !line.contains("expires"));
        for family in ["-4", "-6"] {
            for what in ["rule", "route show table all", "addr show dev lo"] {
                let listed = self.space.ip(&format!("{family} {what}"));
                // What the kernel makes and forgets by itself is nobody's trace.
                all.extend(listed.lines().filter(|l| !l.contains("cache")).map(|l| l.trim().to_owned()));
            }
        }
        all
    }
}

fn pod(node: &Namespace, name: &str, number: u8) -> Pod {
    let space = Namespace::new(name.to_owned());
    let link = format!("pod{number}");
    node.ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
    node.ip(&format!("link set {link} addrgenmode none"));
    node.ip(&format!("link set {link} up"));
    let (v4, v6) = (format!("10.77.{number}.2"), format!("fd77:{number}::2"));
    space.ip("link set eth0 up");
    space.ip(&format!("addr add {v4}/32 dev eth0"));
    space.ip(&format!("-6 addr add {v6}/128 dev eth0 nodad"));
    let settings = format!("net.ipv4.conf.{link}.proxy_arp=1 net.ipv4.neigh.{link}.proxy_delay=0");
    node.exec(&format!("sysctl -qw {settings}"), "");
    node.ip(&format!("-6 addr add fe80::1/64 dev {link} nodad"));
    space.ip("route add 169.254.1.1 dev eth0 scope link");
    space.ip("route add default via 169.254.1.1 dev eth0");
    space.ip("-6 route add default via fe80::1 dev eth0");
    node.ip(&format!("route add {v4}/32 dev {link}"));
    node.ip(&format!("-6 route add {v6}/128 dev {link}"));
    Pod { space, v4: v4.parse().unwrap(), v6: v6.parse().unwrap() }
}

fn pod_on_bridge(node: &Namespace, name: &str, number: u8) -> Pod {
    let space = Namespace::new(name.to_owned());
    if number == 1 {
        // An address of its own that stays, as CNI plugins see to it; else it has one of its ports'.
        node.ip("link add cni0 address 0a:58:0a:4d:00:01 type bridge");
        node.ip("link set cni0 addrgenmode none");
        node.ip("link set cni0 up");
        node.ip("addr add 10.77.0.1/24 dev cni0");
        node.ip("-6 addr add fd77::1/64 dev cni0 nodad");
        // Neighbours are asked from it for packets that bear a pod's address.
        node.ip("-6 addr add fe80::1/64 dev cni0 nodad");
    }
    let link = format!("pod{number}");
    node.ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
    node.ip(&format!("link set {link} addrgenmode none"));
    node.ip(&format!("link set {link} master cni0 up"));
    let (v4, v6) = (format!("10.77.0.{}", number + 1), format!("fd77::{}", number + 1));
    space.ip("link set eth0 up");
    space.ip(&format!("addr add {v4}/24 dev eth0"));
    space.ip(&format!("-6 addr add {v6}/64 dev eth0 nodad"));
    space.ip("route add default via 10.77.0.1 dev eth0");
    space.ip("-6 route add default via fd77::1 dev eth0");
    Pod { space, v4: v4.parse().unwrap(), v6: v6.parse().unwrap() }
}

/// Namespaces of tests that were killed.
fn remove_what_was_left() {
    let all = run("ip", &["netns", "list"], "");
    for name in all.lines().filter_map(|line| line.split(' ').next()) {
        let process = name.strip_prefix("sy").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|id| !std::path::Path::new(&format!("/proc/{id}")).exists()) {
            drop(Command::new("ip").args(["netns", "del", name]).output());
        }
    }
}

impl Pod {
    /// Its address of the family that a Service's address has.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// Serves HTTP on a port, of both families, for as long as the pod is there. Replies say this version, and who asked.
    pub async fn serve(&self, port: u16, version: &'static str) {
        for ip in [self.v4, self.v6] {
            self.space.run(serve(SocketAddr::new(ip, port), version)).await;
        }
    }

    /// Does this with every connection to a port, of both families.
    pub async fn serve_raw<F: Future<Output = ()> + Send + 'static>(
        &self,
        port: u16,
        serve: impl Fn(tokio::net::TcpStream) -> F + Clone + Send + 'static,
    ) {
        for ip in [self.v4, self.v6] {
            let serve = serve.clone();
            let accept = async move {
                let listener = TcpListener::bind(SocketAddr::new(ip, port)).await.unwrap();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream));
                    }
                });
            };
            self.space.run(accept).await;
        }
    }
}

async fn serve(address: SocketAddr, version: &'static str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let service = service_fn(move |_| async move {
                    let reply = Response::builder().header("x-version", version);
                    reply.header("x-source", peer.ip().to_string()).body(full("hello"))
                });
                // How a connection ends is what some tests are about.
                drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
}
