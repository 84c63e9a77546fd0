//! Regular expressions that users write. One must match a whole value, and may not grow beyond a bound when compiled.

use regex_automata::meta::{BuildError, Config, Regex};

/// How large a regular expression may become when compiled, in bytes. A rule's expressions are in memory at every worker
/// of every agent; what people write takes a few KiB, and only repeats of repeats of Unicode classes come near this.
pub const REGEX_NFA_BYTES: usize = 1 << 20;

/// Compiles an expression so that it matches whole values only, or says in words why it cannot be used.
pub fn whole_match(expression: &str) -> Result<Regex, String> {
    // By itself first: wrapped, `a)(b` would become one that compiles, and places in messages would be off.
    compile(expression).map_err(|error| words(&error))?;
    compile(&format!("^(?:{expression})$")).map_err(|error| words(&error))
}

fn compile(expression: &str) -> Result<Regex, Box<BuildError>> {
    Regex::builder().configure(Config::new().nfa_size_limit(Some(REGEX_NFA_BYTES))).build(expression).map_err(Box::new)
}

fn words(error: &BuildError) -> String {
    if let Some(limit) = error.size_limit() {
        return format!("the regular expression takes more than {} KiB when compiled; make it simpler", limit / 1024);
    }
    let reason = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    // The parser's text draws the expression over several lines; its last line says what is wrong.
    let last = reason.lines().last().unwrap_or_default();
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
