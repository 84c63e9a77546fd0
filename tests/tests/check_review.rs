//! `switchyard check` in a review: what it makes of a folder as it is kept in Git, each way of writing it, and what it says of a change.
//! The texts are kept in `review/`; `UPDATE_EXPECT=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect_file;
use serde_json::Value;
use switchyard_tests::binary;
use tempfile::TempDir;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/review")
}

/// Exit status and standard output of `switchyard check`, run in a folder.
fn check(folder: &Path, args: &[&str]) -> (i32, String) {
    let done = Command::new(binary("switchyard")).arg("check").args(args).current_dir(folder).output().unwrap();
    (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
}

#[test]
fn each_output_is_what_it_was() {
    for (output, file) in [
        ("text", "text.txt"),
        ("json", "findings.json"),
        ("sarif", "findings.sarif"),
        ("junit", "junit.xml"),
        ("github", "github.txt"),
    ] {
        let (status, said) = check(&folder(), &["after", "--against", "before", "--output", output]);
        assert_eq!(status, 1, "{said}");
        expect_file![folder().join(file)].assert_eq(&said.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }
}

#[test]
fn a_folder_of_workloads_is_clean_and_skips_what_is_of_others() {
    let (status, said) = check(&folder(), &["before", "--strict", "--output", "text"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("nothing wrong; 1 object of other kinds skipped (1 ConfigMap)"), "{said}");
}

#[test]
fn where_no_workload_is_in_sight_nobody_is_missed() {
    let rules = std::fs::read_to_string(folder().join("before/rules.yaml")).unwrap();
    let shop = std::fs::read_to_string(folder().join("before/shop.yaml")).unwrap();
    let service = shop.split("---").next().unwrap();
    let manifests = tempfile::tempdir().unwrap();
    std::fs::write(manifests.path().join("all.yaml"), format!("{service}---\n{}", rules.replace("v2", "v9"))).unwrap();
    let (status, said) = check(manifests.path(), &["--strict", "."]);
    assert_eq!(status, 0, "{said}");
    // A Pod that the Service selects is enough to know more.
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: my-service, version: v1}}\n";
    std::fs::write(manifests.path().join("pod.yaml"), pod).unwrap();
    let (status, said) = check(manifests.path(), &["--strict", "."]);
    assert_eq!(status, 1);
    assert!(said.contains("no workload of Service shop/my-service has version v9; it has v1"), "{said}");
}

/// The rule that takes a request, and those that match it, as an agent has it.
fn explained(manifests: &str, request: &Value) -> (String, Vec<String>) {
    let url = format!("http://my-service.shop{}", request["path"].as_str().unwrap());
    let mut command = Command::new(binary("switchyard"));
    command.args(["explain", "--manifests", manifests, "--output", "json", "-X", request["method"].as_str().unwrap()]);
    for (name, value) in request["headers"].as_object().unwrap() {
        command.args(["-H", &format!("{name}: {}", value.as_str().unwrap())]);
    }
    let done = command.arg(url).current_dir(folder()).output().unwrap();
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let name = |value: &Value| value.as_str().unwrap_or("no rule").to_owned();
    let considered = said["considered"].as_array().unwrap().iter();
    let matches = |c: &&Value| c["matched"] == true || c["why"].as_str().unwrap().contains("it matches too");
    (name(&said["rule"]), considered.filter(matches).map(|c| name(&c["rule"])).collect())
}

#[test]
fn an_agent_does_with_the_examples_what_is_said_of_them() {
    let (_, said) = check(&folder(), &["after", "--against", "before", "--output", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let mut seen = 0;
    for finding in said["findings"].as_array().unwrap().iter().filter(|finding| !finding["example"].is_null()) {
        let (winner, matching) = explained("after", &finding["example"]);
        let own = format!("shop/{}", finding["name"].as_str().unwrap());
        assert!(winner != own && matching.contains(&own), "{finding}: {winner} {matching:?}");
        assert_eq!(finding["others"][0], winner, "{finding}");
        seen += 1;
    }
    for change in said["changes"].as_array().unwrap().iter().filter(|change| change["change"] == "moved") {
        let message = change["message"].as_str().unwrap();
        let winners = ["before", "after"].map(|manifests| explained(manifests, &change["example"]).0);
        assert!(message.contains(&format!("went by {}", winners[0])), "{change}: {winners:?}");
        assert!(message.contains(&format!("go by {}", winners[1])), "{change}: {winners:?}");
        seen += 1;
    }
    assert!(seen >= 7, "{seen}");
}

fn git(folder: &Path, args: &[&str]) {
    let who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"];
    let done = Command::new("git").arg("-C").arg(folder).args(who).args(args).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn copy(from: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["shop.yaml", "rules.yaml"] {
        std::fs::copy(folder().join(from).join(file), to.join(file)).unwrap();
    }
}

/// A repository with `deploy/` as it was, committed, and as it is, in the folder.
fn repository() -> TempDir {
    let repository = tempfile::tempdir().unwrap();
    let deploy = repository.path().join("deploy");
    copy("before", &deploy);
    // What Git has and a folder has not.
    std::fs::write(deploy.join("old.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: old}\n").unwrap();
    git(repository.path(), &["init", "--quiet"]);
    git(repository.path(), &["add", "."]);
    git(repository.path(), &["commit", "--quiet", "--message", "before"]);
    std::fs::remove_file(deploy.join("old.yaml")).unwrap();
    copy("after", &deploy);
    repository
}

#[test]
fn a_revision_of_git_is_as_good_as_a_folder() {
    let repository = repository();
    let (_, of_folder) = check(&folder(), &["after", "--against", "before", "--output", "json"]);
    let changes = |said: &str| serde_json::from_str::<Value>(said).unwrap()["changes"].clone();
    for (at, path, revision) in [(".", "deploy", "HEAD"), ("deploy", ".", "main")] {
        let (status, said) = check(&repository.path().join(at), &[path, "--against", revision, "--output", "json"]);
        assert_eq!(status, 1);
        let told = changes(&said.replace(&format!("\"{path}/"), "\"after/"));
        assert_eq!(told, changes(&of_folder), "{at} {path} {revision}");
    }
    let (_, said) = check(repository.path(), &["deploy/rules.yaml", "--against", "HEAD", "--output", "text"]);
    assert!(said.contains("v2 10 → 20 %, v1 90 → 80 %"), "{said}");
}

#[test]
fn what_cannot_be_compared_is_not_looked_at() {
    let repository = repository();
    for args in
        [&["deploy", "--against", "nowhere"][..], &["deploy", "--against", "--help"], &["-", "--against", "HEAD"]]
    {
        assert_eq!(check(repository.path(), args).0, 2, "{args:?}");
    }
}

#[test]
fn of_a_thousand_files_exactly_the_conflicts_are_named() {
    let manifests = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(manifests.path().join(name), text).unwrap();
    let rule = |name: &str, of: usize, spec: &str| {
        format!(
            "apiVersion: switchyard.dev/v1alpha1\nkind: RouteRule\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{service: s{of}, {spec}, \
             destinations: [{{service: s{of}, version: v1}}]}}\n"
        )
    };
    // 100 Services with their workloads and 800 rules, told apart by path, method, header, expression and priority.
    for of in 0..100 {
        let mut text = String::new();
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{of}, namespace: shop, labels: {{switchyard.dev/mesh: enabled}}}}\n\
             spec: {{selector: {{app: s{of}}}, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: apps/v1\nkind: StatefulSet\n\
             metadata: {{name: s{of}, namespace: shop}}\nspec: {{template: {{metadata: {{labels: {{app: s{of}, version: v1}}}}}}}}\n"
        )
        .unwrap();
        write(&format!("service-{of}.yaml"), text);
        write(
            &format!("config-{of}.yaml"),
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{of}, namespace: shop}}\n"),
        );
        let specs = [
            "matches: [{path: {value: /a}}]".to_owned(),
            "matches: [{path: {value: /a/b}}, {path: {value: /b/c}}]".to_owned(),
            "matches: [{path: {value: /a}, method: GET}]".to_owned(),
            "matches: [{path: {type: RegularExpression, value: '/v[0-9]+/x'}}]".to_owned(),
            "matches: [{path: {type: RegularExpression, value: '/v[0-9]+/y'}}]".to_owned(),
            "matches: [{headers: [{name: x-tenant, value: a}]}]".to_owned(),
            "matches: [{headers: [{name: X-Tenant, value: b}]}]".to_owned(),
            "priority: -1".to_owned(),
        ];
        for (at, spec) in specs.iter().enumerate() {
            write(&format!("rule-{of}-{at}.yaml"), rule(&format!("r{of}-{at}"), of, spec));
        }
    }
    // One that shares some requests by its expression, one behind a rule for everything, and one that asks for what is asked already.
    write("seed-1.yaml", rule("z-seed-1", 3, "matches: [{path: {type: RegularExpression, value: '/v1[0-9]/(x|z)'}}]"));
    write("seed-2.yaml", rule("z-seed-2", 50, "matches: [{path: {value: /a/b/c}, method: GET}], priority: -2"));
    write("seed-3.yaml", rule("z-seed-3", 97, "matches: [{headers: [{name: x-TENANT, value: a}]}]"));
    let (status, said) = check(manifests.path(), &["--strict", "--output", "json", "."]);
    assert_eq!(status, 1);
    let findings: Vec<Value> = serde_json::from_str(&said).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let mut named: Vec<_> =
        findings.iter().map(|f| (text(f, "name"), text(f, "reason"), f["others"].to_string())).collect();
    named.sort();
    let expected = [
        ("z-seed-1", "Conflicted", r#"["shop/r3-3"]"#),
        ("z-seed-2", "Shadowed", r#"["shop/r50-7"]"#),
        ("z-seed-3", "Shadowed", r#"["shop/r97-5"]"#),
    ];
    assert_eq!(named, expected.map(|(name, reason, others)| (name.to_owned(), reason.to_owned(), others.to_owned())));
    assert_eq!(findings[0]["example"]["path"].as_str().unwrap().len(), "/v10/x".len(), "{}", findings[0]);
    assert_eq!(std::fs::read_dir(manifests.path()).unwrap().count(), 1003);
}
