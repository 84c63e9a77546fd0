//! A regular expression that must match the whole of a value, and what it takes for granted of one.
//!
//! Keeps true:
//! - It takes time in proportion to the value's length, whatever the value (no back-references, no look-around).
//! - It is compiled when it is first asked. A Service may have thousands of them of which few are ever near; until then one takes
//!   no more memory than its text. What cannot be compiled was turned down when it came in ([`Pattern::check`]).
//! - Paths are ASCII (their normal form), so an expression for paths is too: `\d` is ten digits there, and not the 660 of Unicode.

use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;

use regex_automata::nfa::thompson::backtrack::{self, BoundedBacktracker};
use regex_automata::nfa::thompson::pikevm::{self, PikeVM};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};

/// The most memory, in bytes, that one regular expression may compile to; what validation allows fits.
const SIZE_LIMIT: usize = 1 << 20;
/// The most texts of which one is in every value, for one part of an expression.
const MOST_ALTERNATIVES: usize = 16;

/// What values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A path in its normal form.
    Path,
    /// Any bytes.
    Bytes,
}

/// A regular expression for whole values.
pub(super) struct Pattern {
    text: Box<str>,
    of: Of,
    compiled: OnceLock<Option<Box<BoundedBacktracker>>>,
}

impl Pattern {
    pub(super) fn new(text: &str, of: Of) -> Self {
        Self { text: text.into(), of, compiled: OnceLock::new() }
    }

    /// As it is written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it can be compiled.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self) -> Result<(), String> {
        self.compile().map(drop)
    }

    fn parse(&self) -> Result<Hir, String> {
        // Values are bytes: not every header field is UTF-8.
        let config = syntax::Config::new().utf8(false);
        if self.of == Of::Path {
            // On ASCII it means the same without Unicode, and takes a tenth of the time and memory; few ask for a class that only
            // Unicode has.
            if let Ok(hir) = syntax::parse_with(&self.text, &config.unicode(false)) {
                return Ok(hir);
            }
        }
        let hir = syntax::parse_with(&self.text, &config)
            .map_err(|error| format!("{:?} is not a regular expression: {error}", self.text))?;
        Ok(if self.of == Of::Path { ascii(&hir) } else { hir })
    }

    fn compile(&self) -> Result<BoundedBacktracker, String> {
        let unusable = |error: &dyn fmt::Display| format!("{:?} cannot be used: {error}", self.text);
        let whole = Hir::concat(vec![self.parse()?, Hir::look(Look::End)]);
        let config =
            thompson::Config::new().utf8(false).nfa_size_limit(Some(SIZE_LIMIT)).which_captures(WhichCaptures::None);
        let nfa: NFA = thompson::Compiler::new().configure(config).build_from_hir(&whole).map_err(|e| unusable(&e))?;
        BoundedBacktracker::builder().build_from_nfa(nfa).map_err(|e| unusable(&e))
    }

    pub(super) fn matches(&self, value: &[u8]) -> bool {
        let Some(compiled) = self.compiled.get_or_init(|| self.compile().ok().map(Box::new)) else { return false };
        thread_local! { static CACHE: RefCell<Option<backtrack::Cache>> = const { RefCell::new(None) } }
        let input = Input::new(value).anchored(Anchored::Yes).earliest(true);
        let found = CACHE.with_borrow_mut(|cache| {
            let cache = cache.get_or_insert_with(|| compiled.create_cache());
            cache.reset(compiled);
            compiled.try_is_match(cache, input.clone())
        });
        // A long value and a large expression together take more memory than is kept for it.
        found.unwrap_or_else(|_| is_match_of_long(compiled, input))
    }

    /// What a value must have in it: of each of these lists, at least one text. Empty: nothing is known.
    pub(super) fn required(&self) -> Vec<Vec<Box<[u8]>>> {
        let mut required = Vec::new();
        if let Ok(hir) = self.parse() {
            let mut run = Vec::new();
            collect(&hir, &mut run, &mut required);
            end(&mut run, &mut required);
        }
        required
    }
}

fn is_match_of_long(compiled: &BoundedBacktracker, input: Input<'_>) -> bool {
    thread_local! { static CACHE: RefCell<Option<pikevm::Cache>> = const { RefCell::new(None) } }
    let Ok(vm) = PikeVM::builder().build_from_nfa(compiled.get_nfa().clone()) else { return false };
    CACHE.with_borrow_mut(|cache| {
        let cache = cache.get_or_insert_with(|| vm.create_cache());
        cache.reset(&vm);
        vm.is_match(cache, input)
    })
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

/// The same expression for text that is ASCII.
fn ascii(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Look(_) => hir.clone(),
        HirKind::Class(Class::Unicode(class)) => {
            let mut class = class.clone();
            class.intersect(&ClassUnicode::new([ClassUnicodeRange::new('\0', '\x7f')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(class)) => {
            let mut class = class.clone();
            class.intersect(&ClassBytes::new([ClassBytesRange::new(0, 0x7f)]));
            Hir::class(Class::Bytes(class))
        }
        HirKind::Repetition(repetition) => Hir::repetition(repetition.with(ascii(&repetition.sub))),
        HirKind::Capture(capture) => ascii(&capture.sub),
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(ascii).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(ascii).collect()),
    }
}

/// Puts into `required` what is in every value that the expression matches. `run` is the text that ends where it begins; it ends with
/// what is not one text only.
fn collect(hir: &Hir, run: &mut Vec<u8>, required: &mut Vec<Vec<Box<[u8]>>>) {
    match hir.kind() {
        HirKind::Literal(text) => run.extend_from_slice(&text.0),
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Capture(capture) => collect(&capture.sub, run, required),
        HirKind::Concat(parts) => {
            for part in parts {
                collect(part, run, required);
            }
        }
        HirKind::Class(_) => end(run, required),
        HirKind::Repetition(repetition) => {
            end(run, required);
            if repetition.min > 0 {
                collect(&repetition.sub, run, required);
                end(run, required);
            }
        }
        HirKind::Alternation(parts) => {
            end(run, required);
            required.extend(of_alternatives(parts));
        }
    }
}

fn end(run: &mut Vec<u8>, required: &mut Vec<Vec<Box<[u8]>>>) {
    if !run.is_empty() {
        required.push(vec![std::mem::take(run).into()]);
    }
}

/// One text of each alternative: the longest that it takes for granted.
fn of_alternatives(parts: &[Hir]) -> Option<Vec<Box<[u8]>>> {
    let mut all = Vec::new();
    for part in parts {
        let (mut run, mut required) = (Vec::new(), Vec::new());
        collect(part, &mut run, &mut required);
        end(&mut run, &mut required);
        all.extend(required.into_iter().max_by_key(|texts| texts.iter().map(|text| text.len()).min())?);
    }
    (all.len() <= MOST_ALTERNATIVES).then_some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_is_matched_as_ascii_however_the_expression_is_written() {
        for (pattern, path, matches) in [
            (r"/\d+/\w+", "/12/a_b", true),
            (r"/\d+/\w+", "/12/a-b", false),
            ("/[^/]+", "/abc", true),
            ("/[^/]+", "/a/b", false),
            (r"/\p{L}+", "/abc", true),
            (r"/\p{L}+", "/ab1", false),
            (r"/\p{Greek}*", "/", true),
            ("/(?i)kelvin", "/KELVIN", true),
            ("/é*x", "/x", true),
            ("/.", "/x", true),
            (r"/a\b-", "/a-", true),
            ("/(a|b){2}", "/ab", true),
            ("/(a|b){2}", "/abc", false),
        ] {
            let compiled = Pattern::new(pattern, Of::Path);
            compiled.check().unwrap();
            assert_eq!(compiled.matches(path.as_bytes()), matches, "{pattern} and {path}");
        }
    }

    #[test]
    fn what_a_value_must_have_in_it_is_found() {
        let required = |pattern: &str| {
            let texts = |texts: Vec<Box<[u8]>>| {
                texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect::<Vec<_>>().join("|")
            };
            Pattern::new(pattern, Of::Path).required().into_iter().map(texts).collect::<Vec<_>>()
        };
        for (pattern, wanted) in [
            ("/item-7/[a-z]+", vec!["/item-7/"]),
            (r"/v\d+/x(y)z.*end", vec!["/v", "/xyz", "end"]),
            ("/(foo|ba[rz])/x", vec!["/", "foo|ba", "/x"]),
            ("/a?b*(cd)+e{2}", vec!["/", "cd", "e"]),
            ("(a|b*)x", vec!["x"]),
            ("[a-z]+", vec![]),
            ("", vec![]),
            (r"\bab\b", vec!["ab"]),
        ] {
            assert_eq!(required(pattern), wanted, "{pattern}");
        }
    }
}
