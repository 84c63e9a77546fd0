#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::samples::key;

/// What can happen between a controller and an agent.
#[derive(Clone, Debug)]
enum Step {
    /// A Service has rules of this name now.
    Set(u8, u8),
    /// A Service is gone.
    Remove(u8),
    /// The agent gets a delta.
    Deliver,
    /// There is a new revision, which the agent does not get.
    Publish,
    /// The agent comes back to a controller that has started anew and knows only the objects.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..3).prop_map(|(service, content)| Step::Set(service, content)),
        2 => (0u8..4).prop_map(Step::Remove),
        3 => Just(Step::Deliver),
        2 => Just(Step::Publish),
        1 => Just(Step::Restart),
    ]
}

fn content(content: u8) -> (v1::ServiceRoutes, v1::ServiceInstances) {
    let rule = v1::Rule { name: format!("shop/{content}"), ..v1::Rule::default() };
    let instance = v1::Instance { address: format!("10.0.0.{}", content / 2), ..v1::Instance::default() };
    let routes = v1::ServiceRoutes { rules: vec![rule], ..v1::ServiceRoutes::default() };
    (routes, v1::ServiceInstances { instances: vec![instance] })
}

fn apply(agent: &mut BTreeMap<Key, v1::Resource>, Delta { update, about }: Delta) {
    assert_eq!(about.len(), update.upserts.len() + update.removals.len());
    for removed in update.removals {
        assert!(agent.remove(&Key::from_wire(removed).unwrap()).is_some(), "only what is held is taken away");
    }
    for encoded in update.upserts {
        let resource = v1::Resource::decode(encoded).unwrap();
        let key = Key::from_wire(resource.key.clone().unwrap()).unwrap();
        let before = agent.insert(key, resource.clone());
        assert_ne!(before.map(|before| before.version), Some(resource.version), "nothing is sent twice");
    }
}

proptest! {
    #[test]
    fn deltas_always_end_with_the_whole_snapshot(steps in vec(step(), 0..40)) {
        let mut snapshot = Snapshot::default();
        let mut agent: BTreeMap<Key, v1::Resource> = BTreeMap::new();
        let mut base = Base::default();
        for step in steps.into_iter().chain([Step::Deliver]) {
            match step {
                Step::Set(service, number) => {
                    let (routes, instances) = content(number);
                    let key = key("shop", &service.to_string());
                    snapshot.set(&key, routes.clone(), instances.clone());
                    prop_assert!(!snapshot.set(&key, routes, instances), "the same again is no change");
                }
                Step::Remove(service) => {
                    snapshot.remove(&key("shop", &service.to_string()));
                }
                Step::Deliver => {
                    snapshot.advance();
                    apply(&mut agent, snapshot.delta("n", &base));
                    base = Base::Sent(Arc::new(snapshot.clone()));
                    let whole: BTreeMap<_, _> = snapshot.resources().map(|(k, r)| (k.clone(), r.clone())).collect();
                    prop_assert_eq!(&agent, &whole);
                    prop_assert_eq!(snapshot.delta("n", &base).about.len(), 0);
                }
                Step::Publish => snapshot.advance(),
                Step::Restart => {
                    let mut fresh = Snapshot::default();
                    for key in snapshot.resources().map(|(key, _)| key.service.clone()).collect::<Vec<_>>() {
                        let part = |kind| snapshot.get(&Key { service: key.clone(), kind }).unwrap().content.clone();
                        let (Some(Content::Routes(routes)), Some(Content::Instances(instances))) =
                            (part(v1::Kind::Routes), part(v1::Kind::Instances))
                        else {
                            panic!("a resource of another kind than its key says");
                        };
                        fresh.set(&key, routes, instances);
                    }
                    snapshot = fresh;
                    base = Base::Held(agent.iter().map(|(key, r)| (key.clone(), r.version.clone())).collect());
                }
            }
        }
    }
}

#[test]
fn who_is_further_behind_than_is_remembered_is_compared_with_everything() {
    let mut snapshot = Snapshot::default();
    let service = |number: usize| key("shop", &number.to_string());
    let (routes, instances) = content(0);
    snapshot.set(&service(0), routes.clone(), instances.clone());
    snapshot.set(&service(1), routes, instances);
    snapshot.advance();
    let mut agent = BTreeMap::new();
    apply(&mut agent, snapshot.delta("n", &Base::default()));
    let base = Base::Sent(Arc::new(snapshot.clone()));
    snapshot.remove(&service(0));
    for number in 2..REMEMBERED + 10 {
        let (routes, instances) = content(1);
        snapshot.set(&service(number), routes, instances);
        snapshot.advance();
    }
    apply(&mut agent, snapshot.delta("n", &base));
    let whole: BTreeMap<_, _> = snapshot.resources().map(|(k, r)| (k.clone(), r.clone())).collect();
    assert_eq!(agent, whole);
}

#[test]
fn workloads_go_to_the_agent_of_their_node_and_leave_with_the_last_of_them() {
    let on = |name: &str| v1::LocalWorkloads {
        workloads: vec![v1::Workload { name: name.to_owned(), ..Default::default() }],
    };
    let mut snapshot = Snapshot::default();
    snapshot.set_node("n", on("a"));
    snapshot.set_node("m", on("b"));
    snapshot.advance();
    let mut agent = BTreeMap::new();
    apply(&mut agent, snapshot.delta("n", &Base::default()));
    assert_eq!(agent.keys().map(|key| key.service.name.as_str()).collect::<Vec<_>>(), ["n"]);
    let base = Base::Sent(Arc::new(snapshot.clone()));
    snapshot.set_node("n", v1::LocalWorkloads::default());
    snapshot.set_node("m", v1::LocalWorkloads::default());
    snapshot.advance();
    apply(&mut agent, snapshot.delta("n", &base));
    assert!(agent.is_empty());
}
