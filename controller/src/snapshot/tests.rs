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
    /// The agent comes back to a controller that has started anew and knows only the objects.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..3).prop_map(|(service, content)| Step::Set(service, content)),
        2 => (0u8..4).prop_map(Step::Remove),
        3 => Just(Step::Deliver),
        1 => Just(Step::Restart),
    ]
}

fn content(content: u8) -> (v1::ServiceRoutes, v1::ServiceInstances) {
    let rule = v1::Rule { name: format!("shop/{content}"), ..v1::Rule::default() };
    let instance = v1::Instance { address: format!("10.0.0.{}", content / 2), ..v1::Instance::default() };
    let routes = v1::ServiceRoutes { rules: vec![rule], ..v1::ServiceRoutes::default() };
    (routes, v1::ServiceInstances { instances: vec![instance] })
}

fn apply(agent: &mut BTreeMap<Key, v1::Resource>, update: v1::Update) {
    for removed in update.removals {
        assert!(agent.remove(&Key::from_wire(removed).unwrap()).is_some(), "only what is held is taken away");
    }
    for resource in update.upserts {
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
                    let held: Held = agent.iter().map(|(key, r)| (key.clone(), r.version.clone())).collect();
                    apply(&mut agent, snapshot.delta("n", &held));
                    let whole: BTreeMap<_, _> = snapshot.resources().map(|(k, r)| (k.clone(), r.clone())).collect();
                    prop_assert_eq!(&agent, &whole);
                    prop_assert_eq!(snapshot.delta("n", &snapshot.held("n")).upserts.len(), 0);
                }
                Step::Restart => {
                    let mut fresh = Snapshot::default();
                    for key in snapshot.resources().map(|(key, _)| key.service.clone()).collect::<Vec<_>>() {
                        let part = |kind| snapshot.resources[&Key { service: key.clone(), kind }].content.clone();
                        let (Some(Content::Routes(routes)), Some(Content::Instances(instances))) =
                            (part(v1::Kind::Routes), part(v1::Kind::Instances))
                        else {
                            panic!("a resource of another kind than its key says");
                        };
                        fresh.set(&key, routes, instances);
                    }
                    snapshot = fresh;
                }
            }
        }
    }
}
