//! The controller against a real API server: status, who leads, who is let in, what holds while the API server is away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, UdpSocket};
use std::process::Command;

use serde_json::{Value, json};
use switchyard_tests::backend::Backend;
use switchyard_tests::binaries::binary;
use switchyard_tests::client::get_request;
use switchyard_tests::cluster::Cluster;
use switchyard_tests::load::Load;
use switchyard_tests::process::{Controller, Switchyard, example};
use switchyard_tests::{client, wait_for};

const REFUSED: &str = "switchyard_controller_agents_refused_total";

/// The status of a condition, with its reason, of the generation that is there now.
fn condition(object: &Value, kind: &str) -> Option<(String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
    let is_current = condition["observedGeneration"] == object["metadata"]["generation"];
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    is_current.then(|| (text("status"), text("reason")))
}

async fn says(cluster: &Cluster, kind: &str, name: &str, condition_type: &str, status: &str, reason: &str) {
    let what = format!("{kind} {name}: {condition_type} is {status}, for {reason}");
    let wanted = Some((status.to_owned(), reason.to_owned()));
    wait_for(&what, async || condition(&cluster.get("shop", kind, name), condition_type) == wanted).await;
}

fn set_weight(cluster: &Cluster, weight: u32) {
    let patch = format!("[{{\"op\": \"replace\", \"path\": \"/spec/destinations/0/weight\", \"value\": {weight}}}]");
    cluster.kubectl(&["patch", "-n", "shop", "routerule", "canary-deployment", "--type=json", "-p", &patch]);
}

/// The user's own canary, circuit and retry, as the examples have them.
fn apply_examples(cluster: &Cluster) {
    cluster.service("my-service", &["v1", "v2"]);
    for file in ["canary/canary-deployment.yaml", "circuit/circuit.yaml", "retry/retry.yaml"] {
        cluster.apply_file(&example("").join(file));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_is_ready_once_every_agent_has_it_in_force_and_each_edit_is_told() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    let (first, second) = (cluster.node("first"), cluster.node("second"));
    let first = Switchyard::of_node(&cluster, &[&controller], "first", &first).await;
    apply_examples(&cluster);

    // An agent is to be on the second node, and is not there yet.
    says(&cluster, "routerule", "canary-deployment", "Programmed", "False", "Pending").await;
    let rule = cluster.get("shop", "routerule", "canary-deployment");
    assert_eq!(rule["status"]["agents"], json!({"programmed": 1, "total": 2}));
    assert_eq!(condition(&rule, "Accepted"), Some(("True".into(), "Accepted".into())));

    let second = Switchyard::of_node(&cluster, &[&controller], "second", &second).await;
    says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;
    let waited = ["wait", "-n", "shop", "--for=condition=Ready", "routerule/canary-deployment", "--timeout=60s"];
    cluster.kubectl(&waited);
    let rule = cluster.get("shop", "routerule", "canary-deployment");
    assert_eq!(rule["status"]["agents"], json!({"programmed": 2, "total": 2}));
    assert_eq!(rule["status"]["observedGeneration"], rule["metadata"]["generation"]);
    assert_eq!(
        rule["status"]["destinations"][0],
        json!({"service": "my-service", "version": "v2", "weight": 20, "instances": 1})
    );
    let columns = cluster.kubectl(&["get", "-n", "shop", "rr"]);
    assert!(columns.contains("READY") && columns.contains("True"), "{columns}");
    assert!(cluster.kubectl(&["get", "-n", "shop", "switchyard"]).contains("canary-deployment"), "the category");

    // By which addresses callers know it, so that their connections can be taken in.
    let address = cluster.get("shop", "service", "my-service")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let config = first.config().await.to_string();
    assert!(config.contains(&address), "{address}: {config}");

    for weight in [30, 40, 50] {
        set_weight(&cluster, weight);
        says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;
        let split = [("v2".to_owned(), u64::from(weight)), ("v1".to_owned(), 80)];
        for agent in [&first, &second] {
            assert_eq!(agent.split("my-service").await, split, "ready is said only once it is in force");
        }
    }

    // Status is written when it says something else, and not otherwise.
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let before = cluster.get("shop", "routerule", "canary-deployment");
    cluster.service("other", &["v1"]);
    wait_for("the agents know the other Service", async || !first.split("other").await.is_empty()).await;
    let after = cluster.get("shop", "routerule", "canary-deployment");
    assert_eq!(version(&before), version(&after));

    let events = cluster.kubectl(&["get", "events", "-n", "shop"]);
    assert!(events.contains("Accepted"), "{events}");

    cluster.kubectl(&["delete", "-n", "shop", "routerule", "canary-deployment", "--timeout=30s"]);
    let by_default = vec![(String::new(), 1)];
    for agent in [&first, &second] {
        wait_for("the rule is gone from the agents", async || agent.split("my-service").await == by_default).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_rule_stands_in_its_conditions() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    let token = cluster.node("first");
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &token).await;
    cluster.service("my-service", &["v1"]);
    let rule = |name: &str, spec: &str| {
        let head = "apiVersion: switchyard.dev/v1alpha1\nkind: RouteRule\n";
        format!("{head}metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
    };
    cluster.apply(&rule("good", "{service: my-service, destinations: [{service: my-service, version: v1}]}"));
    says(&cluster, "routerule", "good", "Ready", "True", "Ready").await;

    cluster.apply(&rule("nobody", "{service: nobody, destinations: [{service: my-service}]}"));
    says(&cluster, "routerule", "nobody", "ResolvedRefs", "False", "UnresolvedRef").await;
    cluster
        .apply(&rule("v9", "{service: my-service, priority: 9, matches: [{method: PUT}], destinations: [{service: my-service, version: v9}]}"));
    says(&cluster, "routerule", "v9", "ResolvedRefs", "False", "NoInstances").await;
    cluster.apply(&rule("twin", "{service: my-service, destinations: [{service: my-service, version: v1}]}"));
    says(&cluster, "routerule", "twin", "Conflicted", "True", "Shadowed").await;
    says(&cluster, "routerule", "good", "Conflicted", "False", "NoConflict").await;

    // A regular expression that no schema can judge: the webhook is not configured here, so it gets in, and is not in force.
    let bad = "{service: my-service, matches: [{path: {type: RegularExpression, value: '/(x'}}], destinations: [{service: my-service}]}";
    cluster.apply(&rule("good", bad));
    says(&cluster, "routerule", "good", "Accepted", "False", "Invalid").await;
    let config = agent.config().await.to_string();
    assert!(config.contains("shop/good"), "what held before stays in force: {config}");

    // A Service that nobody has opted in.
    cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {switchyard.dev/mesh: disabled}}\n");
    says(&cluster, "routerule", "v9", "Programmed", "False", "NotOptedIn").await;
    wait_for("no agent is given it any more", async || agent.split("my-service").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_controller_takes_over_and_counts_every_agent_wherever_it_is_connected() {
    let Some(cluster) = Cluster::start().await else { return };
    let one = Controller::in_cluster(&cluster, "one").await;
    one.process.says(0, &["revision 1"]).await;
    let two = Controller::in_cluster(&cluster, "two").await;
    let (first, second) = (cluster.node("first"), cluster.node("second"));
    let first = Switchyard::of_node(&cluster, &[&one, &two], "first", &first).await;
    let _second = Switchyard::of_node(&cluster, &[&two, &one], "second", &second).await;
    cluster.service("my-service", &["v1", "v2"]);
    cluster.apply_file(&example("canary/canary-deployment.yaml"));
    // One agent is connected to each.
    says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;
    let rule = cluster.get("shop", "routerule", "canary-deployment");
    assert_eq!(rule["status"]["agents"], json!({"programmed": 2, "total": 2}));

    let lease = || cluster.get("switchyard", "lease", "switchyard-controller");
    let holder = lease()["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    let (leader, other) = if holder == "one" { (one, two) } else { (two, one) };
    leader.process.kill();
    set_weight(&cluster, 50);
    says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;
    let rule = cluster.get("shop", "routerule", "canary-deployment");
    assert_eq!(rule["status"]["agents"], json!({"programmed": 2, "total": 2}));
    assert_ne!(lease()["spec"]["holderIdentity"], holder.as_str());
    assert_eq!(first.split("my-service").await[0], ("v2".to_owned(), 50));
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_show_who_it_is_gets_nothing() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    cluster.service("my-service", &["v1"]);
    let good = cluster.node("first");
    cluster.node("second");
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "agent-first"];
    let wrong_audience = cluster.token(&[&["--audience", "other"], &bound[..]].concat());
    let unbound = cluster.token(&["--audience", "switchyard"]);
    let gone = {
        cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: gone, namespace: switchyard}\nspec: {nodeName: first, serviceAccountName: switchyard-agent, containers: [{name: a, image: a}]}\n");
        let token =
            cluster.token(&["--audience", "switchyard", "--bound-object-kind", "Pod", "--bound-object-name", "gone"]);
        cluster.kubectl(&["delete", "pod", "-n", "switchyard", "gone", "--force", "--grace-period=0"]);
        token
    };
    cluster.kubectl(&["create", "serviceaccount", "-n", "shop", "intruder"]);
    let intruder = cluster.kubectl(&["create", "token", "-n", "shop", "intruder", "--audience", "switchyard"]);
    let cases = [
        (wrong_audience.as_str(), "first", "not-authenticated"),
        (gone.as_str(), "first", "not-authenticated"),
        ("nonsense", "first", "not-authenticated"),
        (unbound.as_str(), "first", "not-bound"),
        (intruder.as_str(), "first", "not-an-agent"),
        (good.as_str(), "second", "other-node"),
    ];
    for (token, node, reason) in cases {
        let before = controller.metric_of(REFUSED, &[("reason", reason)]).await;
        let agent = Switchyard::of_node(&cluster, &[&controller], node, token).await;
        let what = format!("an agent is refused: {reason}");
        wait_for(&what, async || controller.metric_of(REFUSED, &[("reason", reason)]).await > before).await;
        assert!(agent.split("my-service").await.is_empty(), "{reason}");
        assert!(!agent.is_ready().await, "{reason}");
    }
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &good).await;
    agent.ready().await;
    assert!(!agent.split("my-service").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_is_away_agents_keep_what_they_have_and_nothing_is_emptied_on_its_return() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    let token = cluster.node("first");
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &token).await;
    cluster.service("my-service", &["v1", "v2"]);
    cluster.apply_file(&example("canary/canary-deployment.yaml"));
    says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;

    cluster.stop_api_server();
    let after = controller.process.said().len();
    controller.process.says(after, &["cannot watch"]).await;
    assert_eq!(agent.split("my-service").await[0], ("v2".to_owned(), 20));
    cluster.start_api_server();
    cluster.ready().await;
    // What has changed arrives; what has not, never went.
    let received = "switchyard_agent_resources_received_total";
    let before = agent.metric(received, &[]).await;
    set_weight(&cluster, 60);
    says(&cluster, "routerule", "canary-deployment", "Ready", "True", "Ready").await;
    assert_eq!(agent.split("my-service").await[0], ("v2".to_owned(), 60));
    assert_eq!(agent.metric(received, &[]).await, before + 1.0, "one Service's routes, and nothing else");
}

/// An address of this machine that an API server takes for an endpoint's: not on loopback.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: it only chooses the way.
    socket.connect("198.51.100.1:9").expect("a machine with a route");
    socket.local_addr().unwrap().ip()
}

/// The EndpointSlice of one instance, as the controller manager keeps it: `conditions` while its Pod lives.
fn endpoint(cluster: &Cluster, instance: &Backend, conditions: &str) {
    let port = instance.address.port();
    cluster.apply(&format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: my-service-{port}, namespace: shop, labels: {{kubernetes.io/service-name: my-service}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [{}], conditions: {{{conditions}}}}}]
",
        instance.address.ip()
    ));
}

/// The Pod of an instance goes away as Pods do: it terminates, serving those who do not know yet; then it is gone.
async fn goes_away(cluster: &Cluster, load: &Load, mut instance: Backend) {
    endpoint(cluster, &instance, "ready: false, serving: true, terminating: true");
    wait_for("nothing goes to an instance that terminates", async || {
        let before = instance.asked();
        load.goes_on_for(50).await;
        instance.asked() == before
    })
    .await;
    let name = format!("my-service-{}", instance.address.port());
    cluster.kubectl(&["delete", "endpointslice", "-n", "shop", &name]);
    instance.kill();
}

async fn takes_part(load: &Load, instance: &Backend) {
    wait_for("a new instance takes part", async || {
        load.goes_on_for(10).await;
        instance.asked() > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_and_go_under_load_and_no_request_fails_also_while_the_api_server_is_away() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    let token = cluster.node("first");
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &token).await;
    cluster.apply("apiVersion: v1\nkind: Service\nmetadata: {name: my-service, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n");
    let start = || Backend::start_on(own_address(), "v1");
    let (first, second) = (start(), start());
    for instance in [&first, &second] {
        endpoint(&cluster, instance, "ready: true");
    }
    let ask = || get_request("my-service.shop", "/");
    wait_for("the agent knows the Service", async || {
        client::ask(agent.http, ask()).await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
    let load = Load::start(agent.http, 4, ask);
    takes_part(&load, &second).await;
    goes_away(&cluster, &load, first).await;
    let third = start();
    endpoint(&cluster, &third, "ready: true");
    takes_part(&load, &third).await;

    let after = controller.process.said().len();
    cluster.stop_api_server();
    controller.process.says(after, &["cannot watch"]).await;
    load.goes_on_for(500).await;
    let fourth = start();
    cluster.start_api_server();
    cluster.ready().await;
    // Before the controller has looked at what there is.
    endpoint(&cluster, &fourth, "ready: true");
    goes_away(&cluster, &load, second).await;
    takes_part(&load, &fourth).await;
    load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuits_are_held_from_the_command_line_and_let_go() {
    let Some(cluster) = Cluster::start().await else { return };
    let controller = Controller::in_cluster(&cluster, "one").await;
    let token = cluster.node("first");
    let agent = Switchyard::of_node(&cluster, &[&controller], "first", &token).await;
    apply_examples(&cluster);
    says(&cluster, "circuitpolicy", "my-service", "Ready", "True", "Ready").await;
    let circuits = |args: &[&str]| {
        let mut command = Command::new(binary("switchyard"));
        let done = command.env("KUBECONFIG", cluster.kubeconfig()).arg("circuits").args(args).output().unwrap();
        let said = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap()).join("");
        (done.status.code(), said)
    };
    let explained = || {
        let mut command = Command::new(binary("switchyard"));
        command.env("KUBECONFIG", cluster.kubeconfig()).args(["explain", "-n", "shop", "http://my-service.shop/"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let states = async || {
        let shown = client::get(agent.admin, "admin", "/circuits").await.unwrap().text();
        let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
        shown.iter().map(|circuit| circuit["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(circuits(&["-n", "shop"]), (Some(0), "every circuit is closed\n".to_owned()));
    let watched = tempfile::NamedTempFile::new().unwrap();
    let mut watch = Command::new(binary("switchyard"));
    watch.env("KUBECONFIG", cluster.kubeconfig()).args(["circuits", "-n", "shop", "--watch"]);
    let mut watch = watch.stdout(watched.reopen().unwrap()).spawn().unwrap();
    let watched = || std::fs::read_to_string(watched.path()).unwrap();
    wait_for("it is watched", async || watched().starts_with("every circuit is closed\n")).await;

    let hold = ["hold", "open", "my-service", "-n", "shop", "--for", "10m", "--why", "a drill"];
    let (code, said) = circuits(&hold);
    assert!(code == Some(0) && said.starts_with("circuits of shop/my-service are held open until "), "{code:?} {said}");
    wait_for("all are open", async || states().await == ["open", "open"]).await;
    wait_for("that is in the status", async || {
        let (code, said) = circuits(&["-n", "shop"]);
        code == Some(1) && said.contains("HeldOpen") && said.contains(": a drill") && said.contains("held open by hand")
    })
    .await;
    let annotations = &cluster.get("shop", "circuitpolicy", "my-service")["metadata"]["annotations"];
    assert!(!annotations["switchyard.dev/hold-by"].as_str().unwrap().is_empty(), "{annotations}");
    let events = cluster.kubectl(&["get", "events", "-n", "shop", "--field-selector", "reason=Held"]);
    assert!(events.contains("a drill"), "{events}");

    wait_for("who watches sees it", async || watched().contains("held open by hand")).await;
    watch.kill().unwrap();
    watch.wait().unwrap();

    let said = explained();
    assert!(said.contains("circuit open on 1 node (held open by hand"), "{said}");

    let (code, said) = circuits(&["release", "my-service", "-n", "shop"]);
    assert!(code == Some(0) && said.contains("are released"), "{code:?} {said}");
    wait_for("all are closed", async || states().await == ["closed", "closed"]).await;
    wait_for("and the status says so", async || circuits(&["-n", "shop"]).0 == Some(0)).await;
    let said = explained();
    assert!(said.contains("circuit closed"), "{said}");
    let annotations = &cluster.get("shop", "circuitpolicy", "my-service")["metadata"]["annotations"];
    assert_eq!(annotations["switchyard.dev/hold-until"], Value::Null, "{annotations}");

    let (code, said) = circuits(&["hold", "open", "nobody", "-n", "shop", "--for", "1m", "--why", "x"]);
    assert!(code == Some(2) && said.contains("shop/nobody"), "{code:?} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_see_of_an_instance_is_put_together_whichever_controller_they_are_connected_to() {
    let Some(cluster) = Cluster::start().await else { return };
    let one = Controller::in_cluster(&cluster, "one").await;
    one.process.says(0, &["revision 1"]).await;
    let two = Controller::in_cluster(&cluster, "two").await;
    let mut agents = Vec::new();
    for (name, controllers) in [("a", [&one, &two]), ("b", [&two, &one]), ("c", [&one, &two]), ("d", [&two, &one])] {
        let token = cluster.node(name);
        agents.push(Switchyard::of_node(&cluster, &controllers, name, &token).await);
    }
    cluster.apply("apiVersion: v1\nkind: Service\nmetadata: {name: my-service, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n");
    let instance = Backend::start_on(own_address(), "v1");
    endpoint(&cluster, &instance, "ready: true");
    cluster.apply(
        "apiVersion: switchyard.dev/v1alpha1\nkind: CircuitPolicy\nmetadata: {name: circuit, namespace: shop}\n\
         spec: {targetRefs: [{name: my-service}], window: 10m, timeout: 10m}\n",
    );
    says(&cluster, "circuitpolicy", "circuit", "Ready", "True", "Ready").await;
    let ask = async |agent: &Switchyard| {
        client::ask(agent.http, get_request("my-service.shop", "/")).await.map(|reply| reply.status.as_u16()).ok()
    };
    for agent in &agents {
        wait_for("the agent knows the instance", async || ask(agent).await == Some(200)).await;
    }
    // One of each controller, and the others have asked it too.
    instance.fail();
    for agent in &agents[..2] {
        for _ in 0..5 {
            assert_eq!(ask(agent).await, Some(500));
        }
    }
    for agent in &agents[2..] {
        wait_for("all are told the same", async || {
            let circuit = agent.circuit_of(instance.address).await.unwrap();
            circuit["others"] == json!({"failing": 2, "asked": 3})
        })
        .await;
    }
    let instances = || cluster.get("shop", "circuitpolicy", "circuit")["status"]["instances"].clone();
    wait_for("the status says it", async || {
        instances()[0]["message"] == "2 of 4 nodes see it fail: look at what is asked of it from a, b"
    })
    .await;
    let wanted = json!({"destination": "shop/my-service", "instance": instance.address.to_string(), "nodes": 4, "failing": 2, "unreachable": 0});
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&instances()[0][field], value, "{field}");
    }
    let described = cluster.kubectl(&["describe", "-n", "shop", "circuitpolicy", "circuit"]);
    assert!(described.contains("2 of 4 nodes see it fail"), "{described}");
    // It takes ceil(5 x 1/3) failures of its own.
    assert_eq!(
        [ask(&agents[2]).await, ask(&agents[2]).await, ask(&agents[2]).await],
        [Some(500), Some(500), Some(503)]
    );
}
