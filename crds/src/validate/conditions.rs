//! The words that say what counts as a failure (`failures`) and what is tried again (`retryOn`): one list for both.

use crate::values::ValueError;

/// The words, read: a set of kinds of outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Any status from 500 to 599.
    pub server_error: bool,
    /// No connection came about; the instance saw nothing of the request.
    pub connect_failure: bool,
    /// It took too long.
    pub timeout: bool,
    /// The connection or stream broke before the reply was whole.
    pub reset: bool,
    /// The instance refused the stream before it looked at it (HTTP/2 REFUSED_STREAM).
    pub refused_stream: bool,
    /// These statuses, each from 400 to 599, ascending.
    pub statuses: Vec<u16>,
    /// These gRPC statuses, each from 1 to 16, ascending.
    pub grpc_statuses: Vec<u8>,
}

/// What the schema accepts.
pub const PATTERN: &str = "^(ServerError|ConnectFailure|Timeout|Reset|RefusedStream|[45][0-9][0-9]|CANCELLED|UNKNOWN|\
    INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|PERMISSION_DENIED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|\
    ABORTED|OUT_OF_RANGE|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS|UNAUTHENTICATED)$";

/// What may be written, for messages.
pub const HINT: &str = "one of ServerError, ConnectFailure, Timeout, Reset, RefusedStream, a status from 400 to 599, or a gRPC status \
     by its name, such as UNAVAILABLE";

/// Every word that is not a number.
pub const WORDS: [&str; 21] = [
    "ServerError",
    "ConnectFailure",
    "Timeout",
    "Reset",
    "RefusedStream",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How many of [`WORDS`] are not gRPC statuses. Those that follow are, in the order of their numbers, from 1.
const OUTCOMES: usize = 5;

impl Conditions {
    /// Reads the words; one that is unknown (validation has refused it) adds nothing.
    pub fn read(words: &[String]) -> Self {
        let mut conditions = Self::default();
        for word in words {
            // An unknown word is a finding of the object; here it changes nothing.
            let _ = conditions.add(word);
        }
        conditions.statuses.sort_unstable();
        conditions.statuses.dedup();
        conditions.grpc_statuses.sort_unstable();
        conditions.grpc_statuses.dedup();
        conditions
    }

    /// Takes one more word in; an error says what may be written.
    pub fn add(&mut self, word: &str) -> Result<(), ValueError> {
        let nonsense = || ValueError::new(word, HINT);
        match word {
            "ServerError" => self.server_error = true,
            "ConnectFailure" => self.connect_failure = true,
            "Timeout" => self.timeout = true,
            "Reset" => self.reset = true,
            "RefusedStream" => self.refused_stream = true,
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => {
                let status = word.parse().ok().filter(|s| word.len() == 3 && (400..600).contains(s));
                self.statuses.push(status.ok_or_else(nonsense)?);
            }
            _ => {
                let number = (1u8..).zip(&WORDS[OUTCOMES..]).find(|(_, name)| **name == word);
                self.grpc_statuses.push(number.ok_or_else(nonsense)?.0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;
    use regex_automata::meta::Regex;

    use super::*;

    #[test]
    fn words_statuses_and_grpc_names_are_read() {
        let words =
            ["ServerError", "Reset", "503", "429", "429", "UNAVAILABLE", "CANCELLED", "UNAUTHENTICATED", "nonsense"];
        let read = Conditions::read(&words.map(str::to_owned));
        let expected = Conditions {
            server_error: true,
            reset: true,
            statuses: vec![429, 503],
            grpc_statuses: vec![1, 14, 16],
            ..Conditions::default()
        };
        assert_eq!(read, expected);
    }

    proptest! {
        #[test]
        fn reading_accepts_exactly_what_the_schema_accepts(
            word in prop_oneof![prop::sample::select(&WORDS[..]).prop_map(str::to_owned), "[3-6][0-9]{1,3}", "[A-Z_]{0,9}"],
        ) {
            let by_schema = Regex::new(PATTERN).unwrap().is_match(word.as_str());
            prop_assert_eq!(Conditions::default().add(&word).is_ok(), by_schema);
        }
    }
}
