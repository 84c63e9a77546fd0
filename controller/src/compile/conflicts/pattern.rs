//! A regular expression as a set of values. What can be told of it at a glance (how all its values begin and end, one value that
//! is in it) is told from its syntax; the automata are built when a question needs them, since most never do.

use std::cell::{OnceCell, RefCell};

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::meta::Regex;
use regex_automata::nfa::thompson;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::{Class, Hir, HirKind, literal::Extractor};
use switchyard_crds::validate::REGEX_NFA_BYTES;

/// The longest value that is made up at a glance.
const LONGEST_SAMPLE: usize = 256;

/// The memory, in bytes, that the states of one automaton may take before a question counts as too large.
const AUTOMATON_BYTES: usize = 2 << 20;

thread_local! {
    /// Kept, since it takes longer to make one than to compile what people write.
    static COMPILER: thompson::Compiler = {
        let mut compiler = thompson::Compiler::new();
        compiler.syntax(bytewise());
        compiler.configure(thompson::Config::new().utf8(false).nfa_size_limit(Some(REGEX_NFA_BYTES)));
        compiler
    };
}

/// A regular expression that matches whole values.
pub(super) struct Pattern {
    text: String,
    /// Every value of it begins so.
    pub(super) prefix: Vec<u8>,
    /// Every value of it ends so.
    pub(super) suffix: Vec<u8>,
    /// No value of it has fewer bytes.
    least: usize,
    /// A value of it, where one could be told.
    pub(super) sample: Option<Vec<u8>>,
    /// Of a path: its first segments that are always the same, by position from 1.
    pub(super) segments: Vec<(usize, Vec<u8>)>,
    regex: OnceCell<Option<Regex>>,
    walker: OnceCell<Option<Walker>>,
}

/// The automaton of a pattern, walked byte by byte. Its states are made as they are met.
pub(super) struct Walker {
    dfa: DFA,
    cache: RefCell<Cache>,
}

/// Where a walk leads.
pub(super) enum Step {
    /// To this state.
    To(LazyStateID),
    /// Nothing that begins so is in the set.
    Dead,
    /// It cannot be told within the bounds.
    Unclear,
}

impl Pattern {
    /// Reads an expression; none that validation would refuse.
    pub(super) fn new(text: &str) -> Option<Self> {
        let hir = syntax::parse_with(text, &bytewise()).ok()?;
        let looks = !hir.properties().look_set().is_empty();
        let common = |suffix: bool| {
            let mut extractor = Extractor::new();
            if suffix {
                extractor.kind(regex_syntax::hir::literal::ExtractKind::Suffix);
            }
            let found = extractor.extract(&hir);
            let common = if suffix { found.longest_common_suffix() } else { found.longest_common_prefix() };
            common.unwrap_or_default().to_vec()
        };
        let mut sample = Vec::new();
        let has_sample = !looks && example(&hir, &mut sample);
        Some(Self {
            text: text.to_owned(),
            prefix: common(false),
            suffix: common(true),
            least: hir.properties().minimum_len().unwrap_or_default(),
            sample: has_sample.then_some(sample),
            segments: segments(&hir),
            regex: OnceCell::new(),
            walker: OnceCell::new(),
        })
    }

    /// Whether a value is in the set, by the matcher that agents use. One that agents cannot build has no values.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        if let Some(matches) = self.at_a_glance(value) {
            return matches;
        }
        let build = || {
            // A whole automaton takes longer to build than the few questions that are put to it.
            let config =
                Regex::config().utf8_empty(false).nfa_size_limit(Some(REGEX_NFA_BYTES)).dfa(false).onepass(false);
            Regex::builder().syntax(bytewise()).configure(config).build(&self.whole()).ok()
        };
        self.regex.get_or_init(build).as_ref().is_some_and(|regex| regex.is_match(value))
    }

    /// The same, where it takes no matcher to tell.
    fn at_a_glance(&self, value: &[u8]) -> Option<bool> {
        if self.sample.as_deref() == Some(value) {
            return Some(true);
        }
        let is_apart = value.len() < self.least || !value.starts_with(&self.prefix) || !value.ends_with(&self.suffix);
        is_apart.then_some(false)
    }

    /// What the comparison with a value costs, in steps: the first that needs the matcher has to build it.
    pub(super) fn cost(&self, value: &[u8]) -> u64 {
        match (self.at_a_glance(value), self.regex.get()) {
            (Some(_), _) => 1,
            (None, Some(_)) => 8,
            (None, None) => 1_000,
        }
    }

    /// Its automaton; none where it is too large.
    pub(super) fn walker(&self) -> Option<&Walker> {
        let build = || {
            let config = DFA::config()
                .match_kind(MatchKind::All)
                .unicode_word_boundary(true)
                .cache_capacity(AUTOMATON_BYTES)
                .skip_cache_capacity_check(true)
                // States that were given out must stay what they are.
                .minimum_cache_clear_count(Some(0));
            let nfa = COMPILER.with(|compiler| compiler.build(&self.whole()).ok())?;
            let dfa = DFA::builder().configure(config).build_from_nfa(nfa).ok()?;
            let cache = RefCell::new(dfa.create_cache());
            Some(Walker { dfa, cache })
        };
        self.walker.get_or_init(build).as_ref()
    }

    /// As agents compile it.
    fn whole(&self) -> String {
        format!(r"\A(?:{})\z", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Walker {
    /// Where a walk begins.
    pub(super) fn start(&self) -> Step {
        let config = start::Config::new().anchored(Anchored::Yes);
        step(self.dfa.start_state(&mut self.cache.borrow_mut(), &config).ok())
    }

    /// Where it goes with one more byte.
    pub(super) fn next(&self, state: LazyStateID, byte: u8) -> Step {
        step(self.dfa.next_state(&mut self.cache.borrow_mut(), state, byte).ok())
    }

    /// Whether the walk so far is a value of the set; none where it cannot be told.
    pub(super) fn accepts(&self, state: LazyStateID) -> Option<bool> {
        self.dfa.next_eoi_state(&mut self.cache.borrow_mut(), state).ok().map(|end| end.is_match())
    }

    /// Bytes of one class lead to the same states.
    pub(super) fn class(&self, byte: u8) -> u8 {
        self.dfa.byte_classes().get(byte)
    }
}

fn step(state: Option<LazyStateID>) -> Step {
    match state {
        Some(state) if state.is_dead() => Step::Dead,
        Some(state) if !state.is_quit() => Step::To(state),
        _ => Step::Unclear,
    }
}

/// Values are bytes: not every header field is UTF-8.
fn bytewise() -> syntax::Config {
    syntax::Config::new().utf8(false)
}

/// Appends a value that the expression, which looks at nothing around it, matches.
fn example(hir: &Hir, into: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Empty => true,
        HirKind::Literal(literal) => {
            into.extend_from_slice(&literal.0);
            into.len() <= LONGEST_SAMPLE
        }
        HirKind::Class(class) => example_of_class(class, into),
        HirKind::Look(_) => false,
        HirKind::Repetition(repeated) => {
            (0..repeated.min).all(|_| into.len() <= LONGEST_SAMPLE && example(&repeated.sub, into))
        }
        HirKind::Capture(group) => example(&group.sub, into),
        HirKind::Concat(parts) => parts.iter().all(|part| example(part, into)),
        HirKind::Alternation(parts) => {
            let length = into.len();
            parts.iter().any(|part| {
                into.truncate(length);
                example(part, into)
            })
        }
    }
}

fn example_of_class(class: &Class, into: &mut Vec<u8>) -> bool {
    const NICE: &[u8] = b"a1A-_./ ";
    let nice = |holds: &dyn Fn(u8) -> bool| NICE.iter().copied().find(|byte| holds(*byte));
    match class {
        Class::Unicode(class) => {
            let ranges = class.ranges();
            let within = |byte: u8| ranges.iter().any(|r| r.start() <= char::from(byte) && char::from(byte) <= r.end());
            let Some(letter) = nice(&within).map(char::from).or_else(|| ranges.first().map(|range| range.start()))
            else {
                return false;
            };
            into.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Class::Bytes(class) => {
            let ranges = class.ranges();
            let within = |byte: u8| ranges.iter().any(|r| (r.start()..=r.end()).contains(&byte));
            let Some(byte) = nice(&within).or_else(|| ranges.first().map(|range| range.start())) else { return false };
            into.push(byte);
        }
    }
    into.len() <= LONGEST_SAMPLE
}

/// The segments that every path of the expression has in common, up to where it can match a slash that is not written.
fn segments(hir: &Hir) -> Vec<(usize, Vec<u8>)> {
    let mut walk = Segments { at: 0, current: Some(Vec::new()), found: Vec::new() };
    if walk.take(hir) {
        walk.end();
    }
    walk.found.retain(|(position, _)| *position > 0);
    walk.found
}

struct Segments {
    at: usize,
    /// The segment so far, while it is always the same.
    current: Option<Vec<u8>>,
    found: Vec<(usize, Vec<u8>)>,
}

impl Segments {
    /// Whether it is known where the next segment begins.
    fn take(&mut self, hir: &Hir) -> bool {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => true,
            HirKind::Literal(literal) => {
                for byte in &literal.0 {
                    match (byte, &mut self.current) {
                        (b'/', _) => self.end(),
                        (byte, Some(current)) => current.push(*byte),
                        (_, None) => {}
                    }
                }
                true
            }
            HirKind::Capture(group) => self.take(&group.sub),
            HirKind::Concat(parts) => parts.iter().all(|part| self.take(part)),
            _ => {
                self.current = None;
                !may_have_slash(hir)
            }
        }
    }

    fn end(&mut self) {
        if let Some(segment) = self.current.replace(Vec::new()) {
            self.found.push((self.at, segment));
        }
        self.at += 1;
    }
}

fn may_have_slash(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b'/'),
        HirKind::Class(Class::Unicode(class)) => class.ranges().iter().any(|r| r.start() <= '/' && '/' <= r.end()),
        HirKind::Class(Class::Bytes(class)) => class.ranges().iter().any(|r| (r.start()..=r.end()).contains(&b'/')),
        HirKind::Repetition(repeated) => may_have_slash(&repeated.sub),
        HirKind::Capture(group) => may_have_slash(&group.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(may_have_slash),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_all_values_have_in_common_is_told_from_the_syntax() {
        let pattern = Pattern::new("/v[0-9]+/(orders)/[^/]+/x.*y").unwrap();
        assert_eq!(pattern.prefix, b"/v");
        assert_eq!(pattern.suffix, b"y");
        assert_eq!(pattern.segments, [(2, b"orders".to_vec())]);
        assert_eq!(Pattern::new("/a/b").unwrap().segments, [(1, b"a".to_vec()), (2, b"b".to_vec())]);
        assert_eq!(Pattern::new("(?:/a)?/b").unwrap().segments, []);
    }

    proptest! {
        #[test]
        fn the_sample_and_the_walk_agree_with_the_matcher(
            text in "(a|b|/|\\[ab/\\]|\\.|\\(a\\|/b\\)|a\\+|\\(\\?:/a\\)\\*|\\\\bx|[0-9]\\{1,2\\}){0,6}",
            values in prop::collection::vec("[ab/x0]{0,6}", 1..12),
        ) {
            let Some(pattern) = Pattern::new(&text) else { return Ok(()) };
            let regex = Regex::new(&format!(r"\A(?:{text})\z")).unwrap();
            if let Some(sample) = &pattern.sample {
                prop_assert!(regex.is_match(sample), "{text}: {sample:?}");
            }
            for value in values.iter().map(String::as_bytes) {
                let expected = regex.is_match(value);
                prop_assert_eq!(pattern.matches(value), expected, "{} and {:?}", text, value);
                let walker = pattern.walker().unwrap();
                let mut state = walker.start();
                for byte in value {
                    if let Step::To(at) = state {
                        state = walker.next(at, *byte);
                    }
                }
                let accepts = match state {
                    Step::To(at) => walker.accepts(at),
                    Step::Dead => Some(false),
                    Step::Unclear => None,
                };
                prop_assert_eq!(accepts, Some(expected), "{} and {:?}", text, value);
                if expected {
                    let parts: Vec<&[u8]> = value.split(|byte| *byte == b'/').collect();
                    for (at, segment) in &pattern.segments {
                        prop_assert_eq!(parts.get(*at), Some(&&segment[..]), "{} and {:?}", text, value);
                    }
                }
            }
        }
    }
}
