//! Regular expressions that users write. One must match a whole value, and may not grow beyond a bound when compiled.

use regex_automata::meta::{Config, Regex};
use regex_automata::util::syntax;

/// How large a regular expression may become when compiled, in bytes. A rule's expressions are in memory at every worker
/// of every agent; what people write takes a few KiB, and only repeats of repeats of Unicode classes come near this.
pub const REGEX_NFA_BYTES: usize = 1 << 20;

/// Compiles an expression so that it matches whole values only, or says in words why it cannot be used.
pub fn whole_match(expression: &str) -> Result<Regex, String> {
    // By itself first: wrapped, `a)(b` would become one that compiles, and places in messages would be off.
    syntax::parse(expression).map_err(|error| malformed(&error))?;
    // What makes it quick to match takes most of the time to build, and little is matched with it here.
    let config = Config::new().nfa_size_limit(Some(REGEX_NFA_BYTES)).dfa(false).onepass(false).auto_prefilter(false);
    let built = Regex::builder().configure(config).build(&format!("^(?:{expression})$"));
    built.map_err(|error| match (error.size_limit(), error.syntax_error()) {
        (Some(limit), _) => {
            format!("the regular expression takes more than {} KiB when compiled; make it simpler", limit / 1024)
        }
        (None, Some(error)) => malformed(error),
        (None, None) => malformed(&error),
    })
}

fn malformed(error: &impl ToString) -> String {
    // The parser's text draws the expression over several lines; its last line says what is wrong.
    let error = error.to_string();
    let last = error.lines().last().unwrap_or_default();
    format!("the regular expression does not compile: {}", last.trim_start_matches("error: "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_values() {
        let regex = whole_match("v[0-9]+|x").unwrap();
        assert!(regex.is_match("v12") && regex.is_match("x"));
        assert!(!regex.is_match("av12") && !regex.is_match("v12b") && !regex.is_match("x\n"));
    }

    #[test]
    fn one_that_does_not_compile_or_grows_without_measure_says_so() {
        for (expression, part) in [
            ("v[0-9", "unclosed character class"),
            ("a)(b", "unopened group"),
            ("(?=a)b", "look-around"),
            (r"(\w{100}){100}", "more than 1024 KiB"),
        ] {
            let message = whole_match(expression).unwrap_err();
            assert!(message.contains(part), "{expression}: {message}");
        }
    }
}
