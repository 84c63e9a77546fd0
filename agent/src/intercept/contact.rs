//! When the controller was heard of last: an agent that has been alone for too long stops taking connections in, for the plain
//! path's endpoints are fresher than its own by then.
//!
//! It is remembered in a file, as the time of its last change: an agent that starts after a long night, with no controller, knows
//! that what it saved is old.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the file is touched.
const TOUCH: Duration = Duration::from_secs(30);

/// The last time that the controller was heard of.
#[derive(Debug)]
pub(super) struct Contact {
    file: PathBuf,
    last: Option<Instant>,
    touched: Option<Instant>,
}

impl Contact {
    /// As the file says.
    pub(super) fn load(file: PathBuf, now: Instant) -> Self {
        let age = std::fs::metadata(&file).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        Self { last: age.and_then(|age| now.checked_sub(age)), file, touched: None }
    }

    /// There is a stream to the controller now.
    pub(super) fn seen(&mut self, now: Instant) {
        self.last = Some(now);
        if self.touched.is_none_or(|at| now.saturating_duration_since(at) >= TOUCH) {
            self.touched = Some(now);
            // Made anew, its time of change is now. One that cannot be made leaves the next start a little more careful.
            let _ = File::create(&self.file);
        }
    }

    /// Whether it is longer ago than that, or never was.
    pub(super) fn lost_for(&self, limit: Duration, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn an_agent_that_never_had_a_controller_is_alone_and_one_that_had_is_for_the_limit_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, now) = (folder.path().join("contact"), clock::now());
        let hour = Duration::from_secs(3600);
        let mut contact = Contact::load(file.clone(), now);
        assert!(contact.lost_for(hour, now));
        contact.seen(now);
        assert!(!contact.lost_for(hour, now + hour));
        assert!(contact.lost_for(hour, now + hour + Duration::from_secs(1)));
        // A new agent goes by what the old one saw.
        assert!(!Contact::load(file, clock::now()).lost_for(hour, clock::now()));
    }
}
