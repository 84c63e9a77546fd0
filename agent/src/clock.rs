//! The one place where the agent reads the time. What decides takes `now` as an argument.

use std::cell::RefCell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

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

/// The wall clock, for comparing with the times of files.
#[expect(clippy::disallowed_methods, reason = "the edge that all others get the time from")]
pub fn system() -> SystemTime {
    SystemTime::now()
}

/// The wall clock as a Date field has it (RFC 9110 section 6.6.1), written once a second.
#[expect(clippy::disallowed_methods, reason = "the edge that all others get the time from")]
pub fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(last, date)| {
        if *last != second
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            (*last, *date) = (second, now);
        }
        date.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_second_in_which_it_is_asked_for() {
        let read = || {
            let date = httpdate::parse_http_date(date().to_str().unwrap()).unwrap();
            i64::try_from(date.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
        };
        for _ in 0..3 {
            let (before, date, after) = (unix_millis() / 1000, read(), unix_millis() / 1000);
            assert!((before..=after).contains(&date), "{before}, {date}, {after}");
        }
    }
}
