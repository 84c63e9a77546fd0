#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// An instance as a node sees it.
fn view(target: &str, sight: Sight) -> v1::InstanceView {
    v1::InstanceView {
        namespace: "shop".to_owned(),
        service: "cart".to_owned(),
        target: target.to_owned(),
        policy: "shop/cart".to_owned(),
        sight: sight.into(),
    }
}

/// What the nodes n0, n1 and so on see of one instance.
fn views(sights: &[Sight]) -> Views {
    let of = |(number, sight): (usize, &Sight)| (format!("n{number}"), Arc::new(vec![view("10.0.0.1:80", *sight)]));
    sights.iter().enumerate().map(of).collect()
}

/// What is said of it once that has stood so for a while.
fn settled(views: &Views) -> Verdict {
    let (mut correlation, start) = (Correlation::default(), Instant::now());
    correlation.look(views, start);
    correlation.look(views, start + SETTLE)
}

fn message(sights: &[Sight]) -> String {
    let shown = settled(&views(sights)).shown;
    shown["shop/cart"][0].message.clone()
}

const WELL: Sight = Sight::Well;
const FAILING: Sight = Sight::Failing;
const UNREACHED: Sight = Sight::Unreached;

#[test]
fn messages_say_who_sees_what_and_where_to_look() {
    let of = |well: usize, failing: usize, unreached: usize| {
        message(&[vec![WELL; well], vec![FAILING; failing], vec![UNREACHED; unreached]].concat())
    };
    assert_eq!(of(9, 0, 3), "3 of 12 nodes cannot reach it: look at the network of n10, n11, n9");
    assert_eq!(of(3, 0, 1), "1 of 4 nodes cannot reach it: look at the network of n3");
    assert_eq!(of(2, 0, 5), "5 of 7 nodes cannot reach it: look at the network of n2, n3, n4 and 2 more");
    assert_eq!(of(0, 12, 0), "all 12 nodes see it fail: look at the instance");
    assert_eq!(of(0, 0, 12), "none of 12 nodes can reach it: look whether it runs, and who may connect to it");
    assert_eq!(of(0, 3, 1), "all 4 nodes see it fail, and 1 of them cannot reach it: look at the instance");
    assert_eq!(of(2, 1, 0), "1 of 3 nodes sees it fail: look at what is asked of it from n2");
    assert_eq!(
        of(2, 1, 1),
        "2 of 4 nodes see it fail, and 1 of them cannot reach it: look at the instance, and at the network of n3"
    );
    assert_eq!(of(0, 1, 0), "the one node that asks it sees it fail: look at the instance");
    assert_eq!(
        of(0, 0, 1),
        "the one node that asks it cannot reach it: look at the instance, and at the network of n0"
    );
}

#[test]
fn nothing_is_said_until_those_who_asked_had_the_time_to_tell() {
    let (mut correlation, start) = (Correlation::default(), Instant::now());
    let first = correlation.look(&views(&[FAILING, FAILING]), start);
    let told = &first.evidence.instances[0];
    assert_eq!((told.target.as_str(), told.nodes, told.failing), ("10.0.0.1:80", 0, 0), "it is only named");
    assert!(first.shown.is_empty() && !first.is_quiet());
    let all = views(&[FAILING, FAILING, WELL, WELL, WELL]);
    let early = correlation.look(&all, start + SETTLE - Duration::from_millis(1));
    assert_eq!(early.evidence.instances[0].nodes, 0);
    let verdict = correlation.look(&all, start + SETTLE);
    assert_eq!((verdict.evidence.instances[0].nodes, verdict.evidence.instances[0].failing), (5, 2));
    // It ends with the last who sees it fail, and begins anew.
    let well = correlation.look(&views(&[WELL, WELL]), start + SETTLE * 2);
    assert_eq!(well.evidence, v1::Evidence::default());
    let again = correlation.look(&all, start + SETTLE * 3);
    assert_eq!(again.evidence.instances[0].nodes, 0);
}

#[test]
fn what_is_well_wherever_it_is_asked_is_not_spoken_of() {
    assert!(settled(&views(&[WELL, WELL])).is_quiet());
    assert!(settled(&Views::new()).is_quiet());
}

#[test]
fn what_is_shown_changes_no_more_often_than_it_may() {
    let (mut correlation, start) = (Correlation::default(), Instant::now());
    let mut written = Vec::new();
    let mut before = BTreeMap::new();
    // For two minutes, each second another count, and after a minute another fault every second second.
    for second in 0..120u64 {
        let failing = 2 + usize::try_from(second % 3).unwrap();
        let fault = if second >= 60 && second % 2 == 0 { UNREACHED } else { FAILING };
        let sights = [vec![fault; failing], vec![WELL; 8 - failing]].concat();
        let shown = correlation.look(&views(&sights), start + Duration::from_secs(second)).shown;
        if shown != before {
            written.push(second);
            before = shown;
        }
    }
    assert!(written.windows(2).all(|two| two[1] - two[0] >= 5), "{written:?}");
    let counts: Vec<_> = written.iter().filter(|second| **second < 60).collect();
    assert_eq!(counts, [&3, &34], "counts alone");
    assert!(written.len() > 8, "another fault is shown soon: {written:?}");
}

#[test]
fn what_is_shown_ends_with_the_failure_but_not_at_once() {
    let (mut correlation, start) = (Correlation::default(), Instant::now());
    let mut look = |views: &Views, second| correlation.look(views, start + Duration::from_secs(second));
    look(&views(&[FAILING]), 0);
    assert_eq!(look(&views(&[FAILING]), 3).shown.len(), 1);
    assert_eq!(look(&Views::new(), 7).shown.len(), 1);
    assert!(look(&Views::new(), 8).is_quiet());
}

#[test]
fn of_too_many_those_that_most_nodes_see_fail_are_handed_down() {
    let mut views = Views::new();
    let port = |number: usize| format!("10.0.0.1:{}", number + 1);
    let all = |range: std::ops::Range<usize>| range.map(|number| view(&port(number), FAILING)).collect();
    views.insert("n0".to_owned(), Arc::new(all(0..MOST)));
    views.insert("n1".to_owned(), Arc::new(all(MOST..MOST * 2)));
    views.insert("n2".to_owned(), Arc::new(all(MOST * 2 - 10..MOST * 2)));
    let verdict = settled(&views);
    assert_eq!(verdict.evidence.instances.len(), MOST);
    assert!(verdict.evidence.instances[..10].iter().all(|instance| instance.failing == 2));
    assert_eq!(verdict.shown["shop/cart"].len(), SHOWN);
}

#[test]
fn an_instance_of_two_services_is_two() {
    let mut other = view("10.0.0.1:80", FAILING);
    "wares".clone_into(&mut other.service);
    "shop/wares".clone_into(&mut other.policy);
    let views = Views::from([("n0".to_owned(), Arc::new(vec![view("10.0.0.1:80", FAILING), other]))]);
    let shown = settled(&views).shown;
    assert_eq!(shown.keys().collect::<Vec<_>>(), ["shop/cart", "shop/wares"]);
    assert_eq!(shown["shop/wares"][0].destination, "shop/wares");
}
