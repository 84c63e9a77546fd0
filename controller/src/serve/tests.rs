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

#[test]
fn evidence_goes_out_with_a_revision_or_alone_and_nothing_goes_out_while_it_is_under_way() {
    let mut newest = snapshot(&["a"]);
    let mut conversation = Conversation::new(hello(Held::new())).unwrap();
    conversation.hand_down("seen".into());
    let first = conversation.next(&newest).unwrap();
    assert_eq!((first.upserts.len(), first.evidence.as_deref()), (2, Some(&b"seen"[..])), "the first update has it");
    assert!(matches!(conversation.take(ack(1)), Ok(Answer::Acked { revision: 1, .. })));
    assert_eq!(conversation.next(&newest), None, "what was handed down is not handed down again");

    conversation.hand_down("seen otherwise".into());
    let alone = conversation.next(&newest).unwrap();
    assert_eq!((alone.revision, alone.upserts.len(), alone.removals.len()), (1, 0, 0));
    assert_eq!(alone.evidence.as_deref(), Some(&b"seen otherwise"[..]));
    Arc::make_mut(&mut newest).advance();
    conversation.hand_down(Bytes::new());
    assert_eq!(conversation.next(&newest), None, "one is under way");
    assert_eq!(conversation.take(ack(1)).unwrap(), Answer::Heard, "it puts nothing in force");
    let both = conversation.next(&newest).unwrap();
    assert_eq!((both.revision, both.evidence.as_deref()), (2, Some(&b""[..])), "there is none any more");
    assert!(matches!(conversation.take(ack(2)), Ok(Answer::Acked { revision: 2, .. })));
    assert_eq!(conversation.next(&newest), None);
}

#[test]
fn without_evidence_updates_have_none() {
    let mut conversation = Conversation::new(hello(Held::new())).unwrap();
    conversation.hand_down(Bytes::new());
    assert_eq!(conversation.next(&snapshot(&["a"])).unwrap().evidence, None);
}

#[test]
fn what_an_agent_sees_goes_with_its_stream_and_the_newest_stream_of_a_node_counts() {
    let agents = Arc::new(Agents::default());
    let connect = |node: &str| agents.connect(&v1::Hello { node: node.to_owned(), ..v1::Hello::default() }).unwrap();
    let sees = |agent: &Connected, targets: &[&str]| {
        let view = |target: &&str| v1::InstanceView { target: (*target).to_owned(), ..v1::InstanceView::default() };
        let views = Some(v1::InstanceViews { instances: targets.iter().map(view).collect() });
        agent.reported(v1::Report { views, ..v1::Report::default() });
    };
    let seen = |node: &str| agents.instance_views().get(node).map_or(0, |views| views.len());
    let (one, old) = (connect("one"), connect("two"));
    sees(&one, &["10.0.0.1:80", "no instance"]);
    sees(&old, &["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!((seen("one"), seen("two")), (1, 2));
    one.reported(v1::Report::default());
    assert_eq!(seen("one"), 1, "a report of circuits takes nothing back");
    let new = connect("two");
    sees(&new, &["10.0.0.1:80"]);
    assert_eq!(seen("two"), 1);
    drop(old);
    assert_eq!(seen("two"), 1);
    drop((new, one));
    assert_eq!((seen("one"), seen("two")), (0, 0));

    // Those of another controller's agents count until it is gone.
    let message = v1::InstanceView { target: "10.0.0.1:80".to_owned(), ..v1::InstanceView::default() };
    let views = crate::correlate::Views::from([("far".to_owned(), Arc::new(vec![message]))]);
    agents.of_other("b", Some(agents::Others { views, ..agents::Others::default() }));
    assert_eq!(seen("far"), 1);
    agents.of_other("b", None);
    assert_eq!(seen("far"), 0);
}
