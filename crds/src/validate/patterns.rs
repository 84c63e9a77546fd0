//! Regular expressions that users write. One must match a whole value, and may not grow beyond a bound when compiled.

use regex_automata::nfa::thompson::{Compiler, Config};
use regex_automata::util::syntax;

/// How large a regular expression may become when compiled, in bytes. A rule's expressions are in memory at every worker
/// of every agent; what people write takes a few KiB, and only repeats of repeats of Unicode classes come near this.
pub const REGEX_NFA_BYTES: usize = 1 << 20;

thread_local! {
    /// Kept, since it takes longer to make one than to compile what people write.
    static COMPILER: Compiler = {
        let mut compiler = Compiler::new();
        compiler.configure(Config::new().nfa_size_limit(Some(REGEX_NFA_BYTES)));
        compiler
    };
}

/// Whether an expression can be used to match whole values.
///
/// # Errors
/// Why it cannot, in words.
pub fn usable(expression: &str) -> Result<(), String> {
    // By itself first: wrapped, `a)(b` would become one that compiles, and places in messages would be off.
    syntax::parse(expression).map_err(|error| malformed(&error))?;
    COMPILER.with(|compiler| match compiler.build(&format!("^(?:{expression})$")) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.size_limit() {
            Some(limit) => {
                format!("the regular expression takes more than {} KiB when compiled; make it simpler", limit / 1024)
            }
            None => malformed(&error),
        }),
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
    fn one_that_does_not_compile_or_grows_without_measure_says_so() {
        for (expression, part) in [
            ("v[0-9", "unclosed character class"),
            ("a)(b", "unopened group"),
            ("(?=a)b", "look-around"),
            (r"(\w{100}){100}", "more than 1024 KiB"),
        ] {
            let message = usable(expression).unwrap_err();
            assert!(message.contains(part), "{expression}: {message}");
        }
        assert_eq!(usable("v[0-9]+|x"), Ok(()));
    }
}
