//! The first seconds of the soak (`just soak`): all that it does, without what only time can show.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use switchyard_tests::soak::soak;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_everything_changes_each_second_no_caller_sees_it() {
    let soaked = soak(Duration::from_secs(10)).await;
    assert!(soaked.bad.is_empty(), "{} were not good; the first: {}", soaked.bad.len(), soaked.bad[0]);
    assert!(soaked.samples.last().unwrap().good > 0);
}
