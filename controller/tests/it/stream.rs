//! The stream as an agent sees it: a folder on disk, the controller, a client on a loopback connection.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use switchyard_controller::run::{Controller, Handle, Options, Report, Source};
use switchyard_controller::serve::door::Door;
use switchyard_proto::v1;
use switchyard_proto::v1::agent_message::Message;
use switchyard_proto::v1::switchyard_client::SwitchyardClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Nothing here takes longer; what does is broken.
const DEADLINE: Duration = Duration::from_secs(20);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-service, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: one, namespace: shop, labels: {kubernetes.io/service-name: my-service}}
addressType: IPv4
ports: [{name: http, port: 9001}]
endpoints: [{addresses: [127.0.0.1]}]
";

fn rule(weight: &str) -> String {
    format!(
        "apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: canary, namespace: shop}}
spec: {{service: my-service, destinations: [{{service: my-service, weight: {weight}}}]}}
"
    )
}

/// A controller that runs over a folder.
struct Running {
    address: String,
    handle: Handle,
    reports: mpsc::UnboundedReceiver<Report>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn over(folder: &Path, state: Option<&Path>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, reports) = mpsc::unbounded_channel();
        let on_report = Box::new(move |report| drop(sender.send(report)));
        let source = Source::Directory { manifests: folder.to_owned(), state: state.map(Path::to_owned) };
        let options = Options { source, door: Door::Open, on_report };
        let controller = Controller::new(options);
        let handle = controller.handle();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or(()) };
        let task = tokio::spawn(controller.run(TcpListenerStream::new(listener), stopped));
        Self { address, handle, reports, stop, task }
    }

    async fn report(&mut self, what: impl Fn(&Report) -> bool) -> Report {
        let wait = async {
            loop {
                let report = self.reports.recv().await.expect("the controller has ended");
                if what(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("no such report")
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// An agent, as far as the stream goes.
struct Agent {
    up: mpsc::Sender<v1::AgentMessage>,
    down: Streaming<v1::Update>,
}

impl Agent {
    async fn connect(address: &str, first: Option<Message>) -> Result<Self, tonic::Status> {
        let channel = Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
        let mut client = SwitchyardClient::new(channel);
        let (up, messages) = mpsc::channel(8);
        up.send(v1::AgentMessage { message: first }).await.unwrap();
        let down = client.subscribe(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { up, down })
    }

    async fn greet(address: &str, held: Vec<v1::Held>) -> Self {
        let hello = v1::Hello { node: "node".to_owned(), build: "test".to_owned(), held };
        Self::connect(address, Some(Message::Hello(hello))).await.unwrap()
    }

    async fn update(&mut self) -> Result<v1::Update, tonic::Status> {
        let next = tokio::time::timeout(DEADLINE, self.down.message()).await.expect("no update came");
        next.map(|update| update.expect("the stream has ended"))
    }

    async fn say(&self, message: Message) {
        self.up.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn ack(&self, update: &v1::Update) {
        self.say(Message::Ack(v1::Ack { revision: update.revision })).await;
    }
}

fn held(update: &v1::Update) -> Vec<v1::Held> {
    let held = |resource: &v1::Resource| v1::Held { key: resource.key.clone(), version: resource.version.clone() };
    update.resources().map(|resource| held(&resource.unwrap())).collect()
}

fn weight(update: &v1::Update) -> Option<u32> {
    update.resources().find_map(|resource| match resource.unwrap().content {
        Some(v1::resource::Content::Routes(routes)) => Some(routes.rules.first()?.destinations.first()?.weight),
        _ => None,
    })
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("service.yaml"), SERVICE).unwrap();
    std::fs::write(folder.path().join("rule.yaml"), rule("1")).unwrap();
    folder
}

#[tokio::test]
async fn a_saved_file_is_in_force_and_acknowledged() {
    let folder = folder();
    let mut controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    assert_eq!((first.upserts.len(), weight(&first)), (2, Some(1)));
    agent.ack(&first).await;
    controller.report(|report| matches!(report, Report::InForce { agents: 1, total: 1, .. })).await;

    std::fs::write(folder.path().join("rule.yaml"), rule("7")).unwrap();
    let second = agent.update().await.unwrap();
    assert_eq!((second.upserts.len(), weight(&second)), (1, Some(7)), "only what has changed");
    let published = Report::Published { revision: second.revision, changed: vec!["shop/canary".to_owned()] };
    controller.report(|report| *report == published).await;
    agent.ack(&second).await;
    let revision = second.revision;
    let in_force = |report: &Report| matches!(report, Report::InForce { revision: r, agents: 1, .. } if *r == revision);
    controller.report(in_force).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_mending_it_heals() {
    let folder = folder();
    let mut controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    agent.ack(&first).await;
    for text in ["a: [", &rule("-1"), &rule("text"), "\u{0}"] {
        std::fs::write(folder.path().join("rule.yaml"), text).unwrap();
        controller.report(|report| matches!(report, Report::Findings { .. })).await;
        assert_eq!(controller.handle.snapshot().unwrap().revision(), first.revision, "{text:?}");
        std::fs::write(folder.path().join("rule.yaml"), rule("1")).unwrap();
        controller.report(|report| matches!(report, Report::Healed { .. })).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_folder_that_vanishes_changes_nothing_and_is_taken_up_when_it_is_back() {
    let outer = TempDir::new().unwrap();
    let path = outer.path().join("manifests");
    let away = outer.path().join("away");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("service.yaml"), SERVICE).unwrap();
    std::fs::write(path.join("rule.yaml"), rule("1")).unwrap();
    let mut controller = Running::over(&path, None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    agent.ack(&first).await;
    std::fs::rename(&path, &away).unwrap();
    controller.report(|report| matches!(report, Report::Findings { .. })).await;
    assert_eq!(controller.handle.snapshot().unwrap().revision(), first.revision);
    std::fs::write(away.join("rule.yaml"), rule("9")).unwrap();
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(weight(&agent.update().await.unwrap()), Some(9));
    controller.report(|report| matches!(report, Report::Healed { .. })).await;
    controller.stop().await;
}

#[tokio::test]
async fn an_agent_that_comes_back_to_a_new_controller_gets_nothing_it_has() {
    let folder = folder();
    let controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    agent.ack(&first).await;
    controller.stop().await;

    let mut controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, held(&first)).await;
    let update = agent.update().await.unwrap();
    assert_eq!((update.upserts.len(), update.removals.len()), (0, 0));
    agent.ack(&update).await;
    controller.report(|report| matches!(report, Report::InForce { agents: 1, total: 1, .. })).await;
    assert_eq!(controller.handle.agents().counters.resources_sent.get(), 0);
    controller.stop().await;
}

#[tokio::test]
async fn a_restart_beside_a_broken_file_keeps_what_held_before() {
    let (folder, state) = (folder(), TempDir::new().unwrap());
    let controller = Running::over(folder.path(), Some(state.path())).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    controller.stop().await;

    std::fs::write(folder.path().join("rule.yaml"), "spec: [").unwrap();
    let mut controller = Running::over(folder.path(), Some(state.path())).await;
    controller.report(|report| matches!(report, Report::Findings { .. })).await;
    let mut agent = Agent::greet(&controller.address, held(&first)).await;
    let update = agent.update().await.unwrap();
    assert_eq!((update.upserts.len(), update.removals.len()), (0, 0));
    controller.stop().await;

    std::fs::write(state.path().join("objects.json"), "torn").unwrap();
    let controller = Running::over(folder.path(), Some(state.path())).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    assert_eq!(weight(&agent.update().await.unwrap()), None, "nothing of it is used");
    assert!(state.path().join("objects.json.bad").exists());
    controller.stop().await;
}

#[tokio::test]
async fn nonsense_from_an_agent_ends_its_own_stream_only() {
    let folder = folder();
    let controller = Running::over(folder.path(), None).await;
    let mut good = Agent::greet(&controller.address, Vec::new()).await;
    let first = good.update().await.unwrap();
    good.ack(&first).await;

    let mut mute = Agent::connect(&controller.address, None).await.unwrap();
    assert_eq!(mute.update().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let mut liar = Agent::greet(&controller.address, Vec::new()).await;
    let update = liar.update().await.unwrap();
    liar.say(Message::Ack(v1::Ack { revision: update.revision + 1 })).await;
    assert_eq!(liar.update().await.unwrap_err().code(), tonic::Code::InvalidArgument);

    std::fs::write(folder.path().join("rule.yaml"), rule("3")).unwrap();
    assert_eq!(weight(&good.update().await.unwrap()), Some(3));
    controller.stop().await;
}

#[tokio::test]
async fn what_an_agent_rejects_is_told() {
    let folder = folder();
    let mut controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    let errors = vec![v1::ResourceError { key: held(&first).remove(0).key, message: "cannot be".to_owned() }];
    agent.say(Message::Reject(v1::Reject { revision: first.revision, errors })).await;
    let rejected = controller.report(|report| matches!(report, Report::Rejected { .. })).await;
    let Report::Rejected { node, message, .. } = rejected else { unreachable!() };
    assert_eq!((node.as_str(), message.as_str()), ("node", "cannot be"));
    controller.report(|report| matches!(report, Report::InForce { agents: 0, total: 1, .. })).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_when_its_data_link_moves() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let version = |name: &str, weight: &str| {
        std::fs::create_dir(path.join(name)).unwrap();
        std::fs::write(path.join(name).join("all.yaml"), format!("{SERVICE}---\n{}", rule(weight))).unwrap();
    };
    version("..1", "1");
    std::os::unix::fs::symlink("..1", path.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/all.yaml", path.join("all.yaml")).unwrap();
    let controller = Running::over(path, None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    assert_eq!(weight(&first), Some(1));
    agent.ack(&first).await;
    version("..2", "2");
    std::os::unix::fs::symlink("..2", path.join("..new")).unwrap();
    std::fs::rename(path.join("..new"), path.join("..data")).unwrap();
    assert_eq!(weight(&agent.update().await.unwrap()), Some(2));
    controller.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_read_hold_what_they_told() {
    let folder = folder();
    let path = folder.path().join("rule.yaml");
    let mut controller = Running::over(folder.path(), None).await;
    let mut agent = Agent::greet(&controller.address, Vec::new()).await;
    let first = agent.update().await.unwrap();
    agent.ack(&first).await;
    type Break = Arc<dyn Fn(&Path)>;
    let ways: [(&str, Break); 3] = [
        ("too long", Arc::new(|path| std::fs::write(path, vec![b'#'; 50 << 20]).unwrap())),
        ("not UTF-8", Arc::new(|path| std::fs::write(path, [b'a', 0xff]).unwrap())),
        ("a link to nowhere", Arc::new(|path| std::os::unix::fs::symlink("nowhere", path).unwrap())),
    ];
    for (way, break_it) in ways {
        std::fs::remove_file(&path).unwrap();
        break_it(&path);
        let found = controller.report(|report| matches!(report, Report::Findings { .. })).await;
        assert!(matches!(&found, Report::Findings { origin, .. } if origin.ends_with("rule.yaml")), "{found:?}");
        assert_eq!(controller.handle.snapshot().unwrap().revision(), first.revision, "{way}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, rule("1")).unwrap();
        controller.report(|report| matches!(report, Report::Healed { .. })).await;
    }
    controller.stop().await;
}
