#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::samples::key;
use crate::snapshot::Held;

fn snapshot(services: &[&str]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    for name in services {
        snapshot.set(&key("shop", name), v1::ServiceRoutes::default(), v1::ServiceInstances::default());
    }
    snapshot.advance();
    Arc::new(snapshot)
}

fn held(snapshot: &Snapshot) -> Held {
    snapshot.resources().map(|(key, resource)| (key.clone(), resource.version.clone())).collect()
}

fn names(keys: Vec<v1::ResourceKey>) -> Vec<String> {
    keys.into_iter().map(|key| key.name).collect()
}

fn brings(update: &v1::Update) -> Vec<v1::ResourceKey> {
    update.resources().filter_map(|resource| resource.unwrap().key).collect()
}

fn hello(held: Held) -> v1::Hello {
    let held = held.into_iter().map(|(key, version)| v1::Held {
        key: Some(v1::ResourceKey { kind: key.kind.into(), namespace: key.service.namespace, name: key.service.name }),
        version,
    });
    v1::Hello { node: "n".to_owned(), build: String::new(), held: held.collect() }
}

fn ack(revision: u64) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(Message::Ack(v1::Ack { revision })) }
}

#[test]
fn an_agent_that_has_everything_gets_an_empty_update_to_acknowledge() {
    let newest = snapshot(&["a", "b"]);
    let mut conversation = Conversation::new(hello(held(&newest))).unwrap();
    let update = conversation.next(&newest).unwrap();
    assert_eq!((update.revision, update.upserts.len(), update.removals.len()), (1, 0, 0));
}

#[test]
fn an_agent_that_comes_back_gets_the_difference_only() {
    let before = snapshot(&["a", "b"]);
    let now = snapshot(&["b", "c"]);
    let mut conversation = Conversation::new(hello(held(&before))).unwrap();
    let update = conversation.next(&now).unwrap();
    assert_eq!(names(brings(&update)), ["c", "c"]);
    assert_eq!(names(update.removals), ["a", "a"]);
}

#[test]
fn a_slow_agent_gets_the_newest_state_and_not_a_queue() {
    let mut newest = snapshot(&["a"]);
    let mut conversation = Conversation::new(hello(Held::new())).unwrap();
    assert_eq!(conversation.next(&newest).unwrap().revision, 1);
    for name in ["b", "c", "d"] {
        let next = Arc::make_mut(&mut newest);
        next.set(&key("shop", name), v1::ServiceRoutes::default(), v1::ServiceInstances::default());
        next.advance();
        assert_eq!(conversation.next(&newest), None, "one is under way");
    }
    assert!(matches!(conversation.take(ack(1)), Ok(Answer::Acked { revision: 1, .. })));
    let update = conversation.next(&newest).unwrap();
    assert_eq!((update.revision, update.upserts.len()), (4, 6));
    assert!(conversation.take(ack(4)).is_ok());
    assert_eq!(conversation.next(&newest), None);
}

#[test]
fn what_was_rejected_is_not_sent_again_until_it_changes() {
    let mut newest = snapshot(&["a"]);
    let mut conversation = Conversation::new(hello(Held::new())).unwrap();
    let update = conversation.next(&newest).unwrap();
    let errors = vec![v1::ResourceError { key: brings(&update).pop(), message: "no".to_owned() }];
    let reject = v1::AgentMessage { message: Some(Message::Reject(v1::Reject { revision: 1, errors })) };
    assert!(matches!(conversation.take(reject), Ok(Answer::Rejected { revision: 1, .. })));
    Arc::make_mut(&mut newest).advance();
    assert_eq!(conversation.next(&newest).unwrap().upserts.len(), 0);
}

#[test]
fn nonsense_from_an_agent_is_an_error_of_its_stream() {
    let newest = snapshot(&["a"]);
    let mut conversation = Conversation::new(hello(Held::new())).unwrap();
    assert!(conversation.take(ack(1)).is_err(), "nothing was sent");
    conversation.next(&newest).unwrap();
    assert!(conversation.take(ack(7)).is_err(), "another revision was sent");
    assert!(conversation.take(v1::AgentMessage { message: None }).is_err());
    assert!(conversation.take(v1::AgentMessage { message: Some(Message::Hello(hello(Held::new()))) }).is_err());
    let nameless = v1::Held { key: None, version: String::new() };
    assert!(Conversation::new(v1::Hello { held: vec![nameless], ..v1::Hello::default() }).is_err());
}

#[test]
fn a_revision_is_in_force_only_where_nothing_of_it_was_rejected() {
    let agents = Arc::new(Agents::default());
    let connect = |node: &str| {
        let hello = v1::Hello { node: node.to_owned(), ..v1::Hello::default() };
        agents.connect(&hello).unwrap()
    };
    let (one, two) = (connect("one"), connect("two"));
    let key = Key { service: key("shop", "a"), kind: v1::Kind::Routes };
    one.acked(1, std::slice::from_ref(&key));
    two.rejected(1, std::slice::from_ref(&key), vec![(key.clone(), "no".to_owned())]);
    assert_eq!(one.in_force(), (1, 1, 2));
    two.acked(2, &[]);
    assert_eq!(two.in_force(), (2, 0, 2), "what was rejected still stands so");
    two.acked(3, &[key]);
    assert_eq!(two.in_force(), (3, 1, 2));
    drop(one);
    assert_eq!(two.in_force(), (3, 1, 1));
}
