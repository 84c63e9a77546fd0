//! Manifests that change while requests flow: nothing is lost, nothing broken gets in force, and what is mended heals.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use switchyard_tests::backend::Backend;
use switchyard_tests::client::{self, get_request};
use switchyard_tests::load::{Load, ask_times};
use switchyard_tests::manifests::{HOST, Manifests, canary, service};
use switchyard_tests::process::Switchyard;

fn canary_request() -> http::Request<client::Body> {
    let mut request = get_request(HOST, "/");
    request.headers_mut().insert("x-version", "v2".parse().unwrap());
    request
}

/// Everything that a test of an edit needs: two versions, the canary at 20 to 80, and a load that must not notice.
struct Scene {
    manifests: Manifests,
    switchyard: Switchyard,
    load: Load,
    _instances: [Backend; 2],
}

impl Scene {
    async fn set() -> Self {
        let instances = [Backend::start("v1").await, Backend::start("v2").await];
        let manifests = Manifests::canary(&[("v1", instances[0].address), ("v2", instances[1].address)], 20, 80);
        let switchyard = Switchyard::run(manifests.path()).await;
        switchyard.splits(20, 80).await;
        let load = Load::start(switchyard.http, 4, canary_request);
        load.goes_on_for(20).await;
        Self { manifests, switchyard, load, _instances: instances }
    }

    /// Breaks something, and expects these words about it; then what held before must hold, and mending must heal.
    async fn breaks(self, harm: impl FnOnce(&Manifests), words: &[&str]) {
        let said = self.switchyard.process.said().len();
        harm(&self.manifests);
        self.switchyard.process.says(said, words).await;
        self.load.goes_on_for(50).await;
        assert_eq!(self.switchyard.split("my-service").await, [("v2".to_owned(), 20), ("v1".to_owned(), 80)]);
        assert!(self.switchyard.is_ready().await);
        self.heals().await;
    }

    async fn heals(self) {
        self.manifests.write("canary.yaml", &canary(30, 70));
        self.switchyard.splits(30, 70).await;
        self.load.goes_on_for(20).await;
        self.load.stop().await.all_good();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_move_under_load_and_no_request_fails() {
    let scene = Scene::set().await;
    for v2 in [50, 80, 100, 0, 100] {
        let said = scene.switchyard.process.said().len();
        scene.manifests.write("canary.yaml", &canary(v2, 100 - v2));
        scene.switchyard.splits(v2.into(), (100 - v2).into()).await;
        scene.switchyard.process.says(said, &["shop/canary-deployment", "is in force on 1 of 1 agents"]).await;
        scene.load.goes_on_for(100).await;
    }
    let tally = ask_times(scene.switchyard.http, 4, 200, canary_request).await;
    assert_eq!(tally.of("v2"), 200, "once it is shown to be in force, every request follows it");
    scene.load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_come_and_go_under_load_and_no_request_fails() {
    let scene = Scene::set().await;
    let third = Backend::start("v1").await;
    let slice = switchyard_tests::manifests::slice("my-service", "third", "version: v1", third.address);
    scene.manifests.write("third.yaml", &slice);
    switchyard_tests::wait_for("the new instance is asked", async || third.asked() > 0).await;
    scene.manifests.remove("third.yaml");
    let address = third.address.to_string();
    let gone = async || !scene.switchyard.config().await.to_string().contains(&address);
    switchyard_tests::wait_for("the instance is gone", gone).await;
    scene.load.goes_on_for(50).await;
    scene.load.stop().await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yaml_error_is_shown_with_its_line_and_changes_nothing() {
    let broken = canary(50, 50).replace("spec:", "spec: [");
    Scene::set().await.breaks(|m| m.write("canary.yaml", &broken), &["canary.yaml:"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_type_is_shown_with_its_field_and_changes_nothing() {
    let broken = canary(50, 50).replace("weight: 50}", "weight: lots}");
    let words = ["canary.yaml:9:", "spec.destinations[0].weight", "lots"];
    Scene::set().await.breaks(|m| m.write("canary.yaml", &broken), &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_field_is_shown_with_what_was_meant_and_changes_nothing() {
    let broken = canary(50, 50).replace("weight: 50}", "wieght: 50}");
    let words = ["canary.yaml:9:", "wieght", "did you mean `weight`?"];
    Scene::set().await.breaks(|m| m.write("canary.yaml", &broken), &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_of_zero_everywhere_are_refused() {
    Scene::set().await.breaks(|m| m.write("canary.yaml", &canary(0, 0)), &["canary.yaml:", "weight"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_regular_expression_that_does_not_compile_is_refused() {
    let broken = canary(50, 50)
        .replace("type: Exact, name: x-version, value: v2", "type: RegularExpression, name: x-version, value: 'v('");
    let words = ["canary.yaml:7:", "spec.matches[0].headers[0].value"];
    Scene::set().await.breaks(|m| m.write("canary.yaml", &broken), &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_documents_with_one_name_are_both_refused() {
    let broken = canary(50, 50) + "---\n" + &canary(60, 40);
    let words = ["canary.yaml:", "shop/canary-deployment"];
    Scene::set().await.breaks(|m| m.write("canary.yaml", &broken), &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_files_with_one_name_change_nothing_until_one_is_gone() {
    let scene = Scene::set().await;
    let said = scene.switchyard.process.said().len();
    scene.manifests.write("copy.yaml", &canary(60, 40));
    scene.switchyard.process.says(said, &["canary.yaml", "copy.yaml"]).await;
    scene.load.goes_on_for(50).await;
    assert_eq!(scene.switchyard.split("my-service").await[0].1, 20);
    scene.manifests.remove("copy.yaml");
    scene.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_fifty_mebibytes_is_refused_unread() {
    let scene = Scene::set().await;
    let line = "# nothing but comments, for ever and ever and ever and ever\n";
    let huge = line.repeat((50 << 20) / line.len());
    let before = scene.switchyard.process.memory().peak_kib;
    let said = scene.switchyard.process.said().len();
    scene.manifests.write("canary.yaml", &huge);
    scene.switchyard.process.says(said, &["canary.yaml"]).await;
    let grown = scene.switchyard.process.memory().peak_kib.saturating_sub(before);
    assert!(grown < 40 * 1024, "it grew by {grown} KiB for a file that is not even read");
    scene.load.goes_on_for(50).await;
    assert_eq!(scene.switchyard.split("my-service").await[0].1, 20);
    assert!(scene.switchyard.is_ready().await);
    scene.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dangling_symlink_changes_nothing() {
    // In one step: a file that is gone for a moment is a change like any other.
    let in_one_step = |manifests: &Manifests| {
        let aside = manifests.file(".aside");
        std::os::unix::fs::symlink("nowhere.yaml", &aside).unwrap();
        std::fs::rename(aside, manifests.file("canary.yaml")).unwrap();
    };
    Scene::set().await.breaks(in_one_step, &["canary.yaml"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_vanishes_changes_nothing_and_heals_when_it_is_back() {
    let scene = Scene::set().await;
    let said = scene.switchyard.process.said().len();
    let (folder, away) = (scene.manifests.path().to_owned(), scene.manifests.path().with_extension("away"));
    std::fs::rename(&folder, &away).unwrap();
    scene.switchyard.process.says(said, &[folder.to_str().unwrap()]).await;
    scene.load.goes_on_for(50).await;
    assert_eq!(scene.switchyard.split("my-service").await[0].1, 20);
    assert!(scene.switchyard.is_ready().await);
    std::fs::rename(&away, &folder).unwrap();
    scene.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_written_in_pieces_deletes_nothing() {
    use std::io::Write;
    let scene = Scene::set().await;
    let text = canary(60, 40);
    // Truncated first, as `cat > file` does, and then written piece by piece.
    let mut file = std::fs::File::create(scene.manifests.file("canary.yaml")).unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(30));
    for piece in text.as_bytes().chunks(text.len() / 6) {
        pace.tick().await;
        file.write_all(piece).unwrap();
        file.flush().unwrap();
        assert!(!scene.switchyard.split("my-service").await.is_empty());
        let config = scene.switchyard.config().await.to_string();
        assert!(config.contains("shop/canary-deployment"), "the rule must not go away half-way: {config}");
    }
    drop(file);
    scene.switchyard.splits(60, 40).await;
    scene.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_at_a_restart_leaves_what_held_before() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let manifests = Manifests::canary(&[("v1", v1.address), ("v2", v2.address)], 20, 80);
    let state = tempfile::tempdir().unwrap();
    let more = ["--state", state.path().to_str().unwrap()];
    let switchyard = Switchyard::run_with(manifests.path(), &more).await;
    switchyard.splits(20, 80).await;
    assert!(switchyard.process.terminate().await.success());
    manifests.write("canary.yaml", &canary(50, 50).replace("weight: 50}", "weight: lots}"));
    let switchyard = Switchyard::run_with(manifests.path(), &more).await;
    switchyard.process.says(0, &["canary.yaml:9:"]).await;
    switchyard.splits(20, 80).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_service_that_is_not_there_is_told_and_when_it_comes_and_goes() {
    let manifests = Manifests::of(&[("v1", ([127, 0, 0, 1], 9).into())]);
    let switchyard = Switchyard::run_with(manifests.path(), &["--default-service", "shop/late"]).await;
    let process = &switchyard.process;
    process.says(0, &["warning: --default-service shop/late: there is no such Service"]).await;
    let said = process.said().len();
    manifests.write("late.yaml", &service("late", "http", &[("v1", ([127, 0, 0, 1], 9).into())]));
    process.says(said, &["--default-service shop/late: it is there now"]).await;
    let said = process.said().len();
    manifests.remove("late.yaml");
    process.says(said, &["warning: --default-service shop/late: there is no such Service"]).await;
}
