#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::object::Kind;

/// A folder, the time, and how to write to it.
struct Bench {
    folder: Folder,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(BTreeMap::new())
    }

    fn with(last_good: BTreeMap<ObjectKey, Held>) -> Self {
        Self { folder: Folder::new(Path::new("."), last_good), now: Instant::now() }
    }

    /// One look: these files have changed, `None` is gone.
    fn look(&mut self, files: &[(&str, Option<&str>)]) -> Vec<Event> {
        let with_text = files.iter().filter_map(|(file, text)| Some((PathBuf::from(file), Ok((*text)?.to_owned()))));
        let changed = with_text.collect();
        let gone = files.iter().filter(|(_, text)| text.is_none()).map(|(file, _)| PathBuf::from(file)).collect();
        self.folder.look(Look::Changes { changed, gone }, self.now)
    }

    fn broken(&mut self, file: &str, why: &str) -> Vec<Event> {
        let changed = BTreeMap::from([(PathBuf::from(file), Err(why.to_owned().into()))]);
        self.folder.look(Look::Changes { changed, gone: BTreeSet::new() }, self.now)
    }

    /// A look after a while, at which nothing has changed.
    fn later(&mut self) -> Vec<Event> {
        self.now += CONFIRM;
        self.look(&[])
    }

    fn names(&self) -> Vec<String> {
        self.folder.held().keys().map(|key| key.name.clone()).collect()
    }
}

fn rule(name: &str, weight: &str) -> String {
    format!(
        "apiVersion: switchyard.dev/v1alpha1
kind: RouteRule
metadata: {{name: {name}, namespace: shop}}
spec: {{service: my-service, destinations: [{{service: my-service, weight: {weight}}}]}}
"
    )
}

fn both(one: &str, other: &str) -> String {
    format!("{one}---\n{other}")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::RouteRule, namespace: "shop".to_owned(), name: name.to_owned() }
}

fn applied(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::Applied(object) => Some(object.key().name),
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

fn deleted(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::Deleted(key) => Some(key.name.clone()),
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

fn findings(events: &[Event]) -> Vec<(&str, usize)> {
    let mut all = Vec::new();
    for event in events {
        if let Event::Findings { origin, findings } = event {
            all.push((origin.as_str(), findings.len()));
        }
    }
    all
}

#[test]
fn the_first_look_ends_with_synced_and_no_other_does() {
    let mut bench = Bench::new();
    assert_eq!(bench.look(&[]), [Event::Synced]);
    assert_eq!(bench.look(&[]), []);
}

#[test]
fn an_object_whose_file_is_deleted_is_deleted_once_that_is_certain() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    assert_eq!(bench.look(&[("a.yaml", None)]), []);
    assert!(bench.folder.is_unsure());
    assert_eq!(deleted(&bench.later()), ["a"]);
    assert!(!bench.folder.is_unsure());
}

#[test]
fn a_file_that_is_renamed_away_for_a_moment_deletes_nothing() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    bench.look(&[("a.yaml", None)]);
    assert_eq!(applied(&bench.look(&[("a.yaml", Some(&rule("a", "2")))])), ["a"]);
    assert_eq!(bench.later(), []);
}

#[test]
fn a_file_that_is_written_in_steps_deletes_nothing() {
    let mut bench = Bench::new();
    let text = both(&rule("a", "1"), &rule("b", "1"));
    bench.look(&[("a.yaml", Some(&text))]);
    for half in ["", "# a comment\n", &rule("a", "1"), &text[..text.len() - 40]] {
        bench.now += CONFIRM;
        assert_eq!(deleted(&bench.look(&[("a.yaml", Some(half))])), Vec::<String>::new(), "{half:?}");
    }
    bench.look(&[("a.yaml", Some(&text))]);
    assert_eq!(deleted(&bench.later()), Vec::<String>::new());
    assert_eq!(bench.names(), ["a", "b"]);
}

#[test]
fn a_file_that_is_written_again_and_again_without_an_object_deletes_it() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&both(&rule("a", "1"), &rule("b", "1"))))]);
    let (began, mut all) = (bench.now, Vec::new());
    for number in 0.. {
        let text = format!("{}# {number}\n", rule("a", "1"));
        all.extend(deleted(&bench.look(&[("a.yaml", Some(&text))])));
        if !all.is_empty() {
            break;
        }
        bench.now += Duration::from_millis(250);
        assert!(bench.now - began <= LONGEST_WAIT, "it is never deleted");
    }
    assert_eq!(all, ["b"]);
    assert_eq!(bench.now - began, LONGEST_WAIT);
}

#[test]
fn a_file_that_is_read_again_and_holds_the_same_is_not_waited_for_anew() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&both(&rule("a", "1"), &rule("b", "1"))))]);
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    bench.now += CONFIRM;
    assert_eq!(deleted(&bench.look(&[("a.yaml", Some(&rule("a", "1")))])), ["b"]);
}

#[test]
fn a_file_that_stays_empty_deletes_its_objects() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    bench.look(&[("a.yaml", Some(""))]);
    assert_eq!(deleted(&bench.later()), ["a"]);
}

#[test]
fn an_object_that_moves_to_another_file_is_an_update() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    assert_eq!(bench.look(&[("a.yaml", None), ("b.yaml", Some(&rule("a", "1")))]), []);
    let events = bench.look(&[("b.yaml", None), ("c.yaml", Some(&rule("a", "2")))]);
    assert_eq!((applied(&events), deleted(&events).len()), (vec!["a".to_owned()], 0));
    assert_eq!(bench.later(), []);
}

#[test]
fn a_broken_file_changes_nothing_until_it_is_mended() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&both(&rule("a", "1"), &rule("b", "1"))))]);
    for text in ["a: [", "\t- x: {"] {
        let events = bench.look(&[("a.yaml", Some(text))]);
        assert_eq!((applied(&events).len(), deleted(&events).len()), (0, 0), "{text:?}");
        assert_eq!(deleted(&bench.later()).len(), 0);
    }
    assert_eq!(findings(&bench.broken("a.yaml", "the file is too long")), [("a.yaml", 1)]);
    assert_eq!(deleted(&bench.later()).len(), 0);
    let events = bench.look(&[("a.yaml", Some(&rule("a", "5")))]);
    assert_eq!(applied(&events), ["a"]);
    assert_eq!(findings(&events), [("a.yaml", 0)]);
    assert_eq!(deleted(&bench.later()), ["b"]);
}

#[test]
fn a_broken_document_holds_back_its_own_object_only() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&both(&rule("a", "1"), &rule("b", "1"))))]);
    let events = bench.look(&[("a.yaml", Some(&both(&rule("a", "-1"), &rule("b", "2"))))]);
    assert_eq!((applied(&events), findings(&events)), (vec!["b".to_owned()], vec![("a.yaml", 1)]));
    assert_eq!(bench.names(), ["a", "b"]);
    assert_eq!(deleted(&bench.later()).len(), 0);
}

#[test]
fn of_two_files_with_one_object_neither_gets_in_force_and_both_are_named() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    let events = bench.look(&[("b.yaml", Some(&rule("a", "2"))), ("c.yaml", Some(&rule("other", "1")))]);
    assert_eq!(applied(&events), ["other"]);
    assert_eq!(findings(&events), [("a.yaml", 1), ("b.yaml", 1)]);
    let events = bench.look(&[("a.yaml", Some(&rule("a", "3"))), ("d.yaml", Some(&rule("other", "4")))]);
    assert_eq!(applied(&events), Vec::<String>::new());
    let events = bench.look(&[("a.yaml", None), ("c.yaml", None)]);
    assert_eq!(applied(&events), ["a", "other"], "the one that is left is in force");
}

#[test]
fn while_the_folder_is_gone_everything_stays() {
    let mut bench = Bench::new();
    bench.look(&[("a.yaml", Some(&rule("a", "1")))]);
    let events = bench.folder.look(Look::Gone("no such folder".to_owned()), bench.now);
    assert_eq!(findings(&events), [(".", 1)]);
    bench.now += CONFIRM;
    assert_eq!(bench.folder.look(Look::Gone("no such folder".to_owned()), bench.now), []);
    assert_eq!(bench.names(), ["a"]);
    assert_eq!(findings(&bench.look(&[])), [(".", 0)]);
}

#[test]
fn a_folder_that_is_not_there_at_the_start_is_waited_for() {
    let mut bench = Bench::new();
    let events = bench.folder.look(Look::Gone("no such folder".to_owned()), bench.now);
    assert!(!events.contains(&Event::Synced));
    assert!(bench.look(&[]).contains(&Event::Synced));
}

#[test]
fn a_restart_beside_a_broken_file_keeps_what_held_before() {
    let mut bench = Bench::new();
    let text = [both(&rule("a", "1"), &rule("b", "1")), rule("c", "1"), rule("d", "1")];
    bench.look(&[("a.yaml", Some(&text[0])), ("c.yaml", Some(&text[1])), ("d.yaml", Some(&text[2]))]);
    let mut bench = Bench::with(bench.folder.held().clone());
    let events = bench.look(&[("a.yaml", Some("a: [")), ("c.yaml", Some(&rule("c", "-1")))]);
    assert_eq!(applied(&events), ["a", "b", "c"], "d is gone, which is no mistake");
    assert_eq!(events.last(), Some(&Event::Synced));
    assert!(bench.folder.held().contains_key(&key("a")));
    assert_eq!(deleted(&bench.later()).len(), 0);
}

#[test]
fn of_two_files_that_claim_an_object_each_is_shown_where_also_when_one_is_broken() {
    let mut bench = Bench::new();
    let broken = both(&rule("a", "1"), &rule("b", "many"));
    let events = bench.look(&[("one.yaml", Some(&broken)), ("two.yaml", Some(&rule("b", "1")))]);
    let found = events.iter().filter_map(|event| match event {
        Event::Findings { findings, .. } => Some(findings.iter().filter(|finding| finding.reason == Reason::Duplicate)),
        _ => None,
    });
    let found: Vec<_> =
        found.flatten().map(|finding| (finding.place.as_ref().unwrap().line, &finding.message)).collect();
    let told = |other: &str| {
        format!("RouteRule shop/b is also in {other}; what held before stays in force until one of them is gone")
    };
    assert_eq!(found, [(8, &told("two.yaml:3")), (3, &told("one.yaml:8"))]);
}
