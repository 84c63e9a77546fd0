//! What a command writes on standard output. What was asked for must arrive; what is said by the way need not.

use std::fmt;
use std::io::{self, Write as _};

/// Writes what was asked for. A reader that has gone has seen enough.
///
/// # Errors
/// It cannot be written, as on a full disk.
pub(crate) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}"))),
    }
}

/// Says a line by the way: nobody to listen is no reason to stop.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}
