//! What stood before a change: a folder or a file, or a revision of the Git repository that the files are in.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use switchyard_controller::source::directory::disk;
use switchyard_controller::source::manifest::MAX_FILE_BYTES;
use switchyard_controller::{Loaded, load_texts};

/// Reads what `against` names. `paths` are what is looked at now.
pub(super) fn load(against: &str, paths: &[PathBuf]) -> Result<Loaded> {
    let path = PathBuf::from(against);
    if path.exists() {
        return Ok(switchyard_controller::load(&[path])?);
    }
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            bail!("standard input has no revision {against:?}: give a folder or a file to compare it with");
        }
        texts.extend(of_git(against, path).with_context(|| format!("{} at {against}", path.display()))?);
    }
    Ok(load_texts(texts))
}

/// A file of a revision: its name, as seen from where Git is asked, and the object that holds its text.
struct Blob {
    name: PathBuf,
    id: String,
}

/// The manifests of a folder, or a file, as a revision has them.
fn of_git(revision: &str, path: &Path) -> Result<Vec<(PathBuf, String)>> {
    let (folder, file) = match path.is_dir() {
        true => (path, None),
        false => (path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new(".")), path.file_name()),
    };
    let commit = format!("{revision}^{{commit}}");
    let commit =
        git(folder, &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit], &[]).with_context(|| {
            format!("{revision:?} is neither a folder or file that is here, nor a revision of the Git repository")
        })?;
    let commit = String::from_utf8(commit).context("git names a commit in odd letters")?;
    let listed = git(folder, &["ls-tree", "-r", "-z", commit.trim()], &[])?;
    let mut blobs = Vec::new();
    for line in listed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(line);
        // MODE TYPE ID, a tab, NAME.
        let (head, name) = line.split_once('\t').context("git lists files in an unknown way")?;
        let [mode, "blob", id] = head.split(' ').collect::<Vec<_>>()[..] else { continue };
        let name = PathBuf::from(name);
        let is_hidden = name.iter().any(|part| part.as_encoded_bytes().starts_with(b"."));
        let is_meant = file.map_or(!is_hidden && disk::is_manifest(&name), |file| name == *file);
        // 120000 is a symbolic link, whose text is where it leads.
        if is_meant && mode != "120000" {
            blobs.push(Blob { name, id: id.to_owned() });
        }
    }
    read(folder, blobs)
}

/// The texts of blobs, in one go.
fn read(folder: &Path, blobs: Vec<Blob>) -> Result<Vec<(PathBuf, String)>> {
    let ids: String = blobs.iter().map(|blob| format!("{}\n", blob.id)).collect();
    let all = git(folder, &["cat-file", "--batch"], ids.as_bytes())?;
    let mut rest = &all[..];
    let mut texts = Vec::new();
    for blob in blobs {
        // ID TYPE LENGTH, a line break, the text, a line break.
        let end = rest.iter().position(|byte| *byte == b'\n').context("git has cut its answer short")?;
        let head = String::from_utf8_lossy(&rest[..end]);
        let length: usize =
            head.rsplit(' ').next().and_then(|length| length.parse().ok()).context("git has no such text")?;
        let text = rest.get(end + 1..end + 1 + length).context("git has cut its answer short")?;
        rest = rest.get(end + length + 2..).unwrap_or_default();
        if length as u64 <= MAX_FILE_BYTES {
            texts.push((folder.join(blob.name), String::from_utf8_lossy(text).into_owned()));
        }
    }
    Ok(texts)
}

/// What git answers.
fn git(folder: &Path, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("git cannot be run")?;
    let stdin = child.stdin.take();
    // Git writes while it reads, so both must go on at once.
    let done = std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = Some(said.trim()).filter(|said| !said.is_empty()).map_or(done.status.to_string(), ToOwned::to_owned);
        bail!("git {}: {said}", arguments[0]);
    }
    Ok(done.stdout)
}
