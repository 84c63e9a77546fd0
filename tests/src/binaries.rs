//! The binaries under test: built once per test executable, by the same cargo and in the same profile, and found beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of a binary, such as `switchyard`.
///
/// They are built first, so that a test never runs yesterday's. With `SWITCHYARD_BINARIES=DIR` those of the folder are taken
/// as they are: to test what a release would ship.
///
/// # Panics
/// When they cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(folder).join(name)
}

fn folder() -> PathBuf {
    if let Some(given) = std::env::var_os("SWITCHYARD_BINARIES") {
        return given.into();
    }
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().to_owned();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.arg("build").current_dir(repository()).env("CARGO_TARGET_DIR", folder.parent().unwrap());
    // What cargo tells a test of its own package would have dependencies whose build scripts look at it built again, and all that needs
    // them: a minute at each run of a test.
    for (name, _) in std::env::vars_os() {
        let of_package =
            |name: &str| name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_package) {
            build.env_remove(name);
        }
    }
    if std::env::args().any(|arg| arg == "--bench") {
        // A benchmark is about what users build, and no tests have been built for it.
        build.args(["--bins", "-p", "switchyard", "-p", "switchyard-controller", "-p", "switchyard-agent"]);
    } else {
        // With the tests, though only the binaries are wanted: their dependencies then have the features that `cargo test --workspace`
        // gave them, and need not be built again.
        build.args(["--workspace", "--bins", "--tests"]);
    }
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let built = build.output().unwrap();
    assert!(built.status.success(), "cannot build the binaries:\n{}", String::from_utf8_lossy(&built.stderr));
    folder
}

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
