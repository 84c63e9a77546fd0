//! How much memory the process may have, and how near it is to that. What gives way then: connections that hold what is not taken
//! (`listen::relief`), and then requests beyond a few (`request`).
//!
//! Keeps true: whatever a limit says and however much the process has for other reasons, some requests at a time are served
//! ([`ALWAYS_SERVED`]): a limit that is too low makes an agent slow, and never takes a node's traffic down.

use std::fs;
use std::path::{Path, PathBuf};

/// So many requests a worker serves at a time however short memory is.
pub const ALWAYS_SERVED: i64 = 64;

/// What an agent may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bytes, of the whole process.
    pub bytes: u64,
    /// Among so many threads what is let go is shared out.
    pub workers: u64,
}

/// How near the process is to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// There is room.
    None,
    /// So many bytes of each worker's are to be let go.
    High(u64),
    /// The same, and no more is to be begun.
    Full(u64),
}

impl Limit {
    /// What it means that the process has so many bytes. Relief begins at three quarters of the limit, and at seven eighths it is full:
    /// what is under way already may still take more.
    pub fn pressure(self, used: u64) -> Pressure {
        let (enough, full) = (self.bytes / 4 * 3, self.bytes / 8 * 7);
        let share = used.saturating_sub(enough).div_ceil(self.workers.max(1));
        match used {
            _ if used >= full => Pressure::Full(share),
            _ if used > enough => Pressure::High(share),
            _ => Pressure::None,
        }
    }
}

/// What the process may have where nobody says it: three quarters of what its control group may, for what the kernel has for its sockets
/// counts there too; without a group's limit a quarter of the machine. Nothing where that cannot be told.
pub fn default_limit() -> Option<u64> {
    limit_below(Path::new("/"))
}

fn limit_below(root: &Path) -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(root.join(path.strip_prefix("/").unwrap_or(path))).ok();
    let machine = field(&read(Path::new("/proc/meminfo"))?, "MemTotal:")?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let files = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (mounted, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        };
        let counts = controllers.is_empty() || controllers.split(',').any(|one| one == "memory");
        // A group is bound by those that it is in as well.
        let groups = Path::new(group.trim_start_matches('/')).ancestors();
        groups
            .map(move |group| Path::new(mounted).join(group).join(file))
            .filter(move |_| counts)
            .collect::<Vec<PathBuf>>()
    });
    let group = files.filter_map(|file| read(&file)?.trim().parse::<u64>().ok()).min();
    Some(group.filter(|group| *group < machine).map_or(machine / 4, |group| group / 4 * 3))
}

/// What the process has in memory of its own, in bytes. Nothing where that cannot be told.
pub fn used() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// A field in KiB, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_before_the_limit_and_each_worker_has_its_share_of_it() {
        let limit = Limit { bytes: 800, workers: 2 };
        assert_eq!([0, 600].map(|used| limit.pressure(used)), [Pressure::None; 2]);
        assert_eq!([601, 699].map(|used| limit.pressure(used)), [Pressure::High(1), Pressure::High(50)]);
        assert_eq!([700, 900].map(|used| limit.pressure(used)), [Pressure::Full(50), Pressure::Full(150)]);
    }

    #[test]
    fn the_limit_is_the_groups_or_a_share_of_the_machine() {
        let limit = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in [("proc/meminfo", "MemTotal:       8000000 kB\nMemFree: 1 kB\n")].iter().chain(files) {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            limit_below(root.path())
        };
        let quarter = Some(2_000_000 * 1024);
        assert_eq!(limit(&[]), quarter);
        let v2 = ("proc/self/cgroup", "0::/kubepods/pod1\n");
        assert_eq!(limit(&[v2, ("sys/fs/cgroup/kubepods/pod1/memory.max", "max\n")]), quarter);
        assert_eq!(limit(&[v2, ("sys/fs/cgroup/kubepods/pod1/memory.max", "4000000\n")]), Some(3_000_000));
        let above = ("sys/fs/cgroup/kubepods/memory.max", "2000000\n");
        assert_eq!(limit(&[v2, above, ("sys/fs/cgroup/kubepods/pod1/memory.max", "4000000\n")]), Some(1_500_000));
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/b\n");
        assert_eq!(limit(&[v1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")]), quarter);
        assert_eq!(limit(&[v1, ("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "4000000\n")]), Some(3_000_000));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_this_process_has_can_be_told() {
        assert!(used().unwrap() > 100_000);
        assert!(default_limit().unwrap() > 100_000);
    }
}
