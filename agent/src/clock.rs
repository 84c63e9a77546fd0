//! The one place where the agent reads the time. What decides takes `now` as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time.
#[expect(clippy::disallowed_methods, reason = "the edge that all others get the time from")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, in milliseconds since 1970, for showing and for files; never for deciding.
#[expect(clippy::disallowed_methods, reason = "the edge that all others get the time from")]
pub fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
