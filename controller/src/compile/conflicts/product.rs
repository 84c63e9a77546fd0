//! Whether a value passes some tests and fails others, exactly: all of them are walked at once as automata, breadth first, so the first
//! value found is a shortest one, of the plainest letters that will do.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use regex_automata::hybrid::LazyStateID;

use super::pattern::{Pattern, Step, Walker};
use super::values::{Domain, Test, Tests};
use super::work::Work;

/// States of all automata together that one question may meet. Two expressions as people write them have a few hundred.
pub(super) const STATES: usize = 10_000;

/// The answer.
pub(super) enum Found {
    /// A value.
    Value(Vec<u8>),
    /// There is none.
    Nothing,
    /// More states than [`STATES`], or an expression whose automaton is too large.
    Unclear,
}

/// A test as an automaton.
enum Machine<'m> {
    /// A text, and what follows it.
    Text(&'m [u8], Rest),
    Pattern(&'m Walker),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing.
    Nothing,
    /// Anything.
    Anything,
    /// Nothing, or a slash and anything.
    Below,
}

/// Where a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// So many bytes into its text.
    Text(usize),
    Pattern(LazyStateID),
    /// Whatever follows, it accepts.
    All,
    /// Whatever follows, it does not.
    Dead,
}

/// Somewhere in the expression it could not be told.
struct Unclear;

type Steps<T> = Result<T, Unclear>;

/// Looks for a value.
pub(super) fn find(tests: &Tests<'_, '_>, domain: &Domain, loosely: bool, work: &Work) -> Found {
    let expression = domain_pattern(domain.expression(loosely));
    let walker = expression.as_ref().and_then(|pattern| pattern.walker());
    let (Some(walker), Ok(mut yes), Ok(no)) = (walker, machines(&tests.yes), machines(&tests.no)) else {
        return Found::Unclear;
    };
    yes.insert(0, Machine::Pattern(walker));
    let letters = letters(yes.iter().chain(&no));
    let mut search = Search { letters, wanted: yes.len(), machines: yes.into_iter().chain(no).collect() };
    // Most that there is can be written in ASCII, and is found with much less work.
    let all = search.letters.clone();
    search.letters.retain(u8::is_ascii);
    match search.run(work) {
        Ok(Found::Nothing) | Err(Unclear) if search.letters.len() < all.len() => {
            search.letters = all;
            search.run(work).unwrap_or(Found::Unclear)
        }
        found => found.unwrap_or(Found::Unclear),
    }
}

thread_local! {
    /// What can be there at all; a handful of expressions that never change.
    static DOMAINS: std::cell::RefCell<HashMap<&'static str, Rc<Pattern>>> = std::cell::RefCell::default();
}

fn domain_pattern(expression: &'static str) -> Option<Rc<Pattern>> {
    DOMAINS.with_borrow_mut(|known| {
        if let Some(pattern) = known.get(expression) {
            return Some(Rc::clone(pattern));
        }
        let pattern = Rc::new(Pattern::new(expression)?);
        known.insert(expression, Rc::clone(&pattern));
        Some(pattern)
    })
}

fn machines<'m>(tests: &[&'m Test<'_>]) -> Steps<Vec<Machine<'m>>> {
    tests.iter().filter_map(|test| machine(test)).collect()
}

/// A test as an automaton over what is there; none where it says nothing of that.
fn machine<'m>(test: &'m Test<'_>) -> Option<Steps<Machine<'m>>> {
    Some(Ok(match test {
        Test::Exact(text) => Machine::Text(text.as_bytes(), Rest::Nothing),
        Test::Prefix(text) => Machine::Text(text.as_bytes(), Rest::Anything),
        Test::Below(text) => Machine::Text(text.as_bytes(), Rest::Below),
        Test::Pattern(pattern) => match pattern.walker() {
            Some(walker) => Machine::Pattern(walker),
            None => return Some(Err(Unclear)),
        },
        Test::Present | Test::Absent => return None,
    }))
}

struct Search<'m> {
    machines: Vec<Machine<'m>>,
    /// The first so many must accept, the others must not.
    wanted: usize,
    /// One byte of each class that no machine tells apart, the plainest first.
    letters: Vec<u8>,
}

impl Search<'_> {
    fn run(&self, work: &Work) -> Steps<Found> {
        let start: Vec<At> = self.machines.iter().map(Machine::start).collect::<Steps<_>>()?;
        // How each state was come to: from which, by which byte.
        let mut came: Vec<(usize, u8)> = vec![(0, 0)];
        let mut states: Vec<Rc<[At]>> = vec![start.into()];
        let mut known: HashSet<Rc<[At]>> = HashSet::from([Rc::clone(&states[0])]);
        let mut at = 0;
        // An automaton that cannot go on (after a byte that is not ASCII, where it looks for Unicode words) leaves the rest to be seen.
        let mut is_all = true;
        while let Some(state) = states.get(at).cloned() {
            match self.is_wanted(&state) {
                Ok(true) => return Ok(Found::Value(spell(&came, at))),
                Ok(false) => {}
                Err(Unclear) => is_all = false,
            }
            for &letter in &self.letters {
                work.spend(1);
                let next = match self.step(&state, letter) {
                    Ok(Some(next)) if !known.contains(&next) => next,
                    Ok(_) => continue,
                    Err(Unclear) => {
                        is_all = false;
                        continue;
                    }
                };
                if states.len() >= STATES || work.is_used_up() {
                    return Err(Unclear);
                }
                known.insert(Rc::clone(&next));
                states.push(next);
                came.push((at, letter));
            }
            at += 1;
        }
        if is_all { Ok(Found::Nothing) } else { Err(Unclear) }
    }

    fn is_wanted(&self, state: &[At]) -> Steps<bool> {
        for (i, (machine, at)) in self.machines.iter().zip(state).enumerate() {
            if machine.accepts(*at)? != (i < self.wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a letter leads; none where nothing that is wanted can follow.
    fn step(&self, state: &[At], letter: u8) -> Steps<Option<Rc<[At]>>> {
        let mut next = Vec::with_capacity(state.len());
        for (i, (machine, at)) in self.machines.iter().zip(state).enumerate() {
            let to = machine.next(*at, letter)?;
            let is_over = if i < self.wanted { At::Dead } else { At::All };
            if to == is_over {
                return Ok(None);
            }
            next.push(to);
        }
        Ok(Some(next.into()))
    }
}

fn spell(came: &[(usize, u8)], mut at: usize) -> Vec<u8> {
    let mut value = Vec::new();
    while at > 0 {
        let (from, letter) = came[at];
        value.push(letter);
        at = from;
    }
    value.reverse();
    value
}

impl Machine<'_> {
    fn start(&self) -> Steps<At> {
        match self {
            Self::Text(text, rest) => Ok(At::of_text(text, *rest, 0)),
            Self::Pattern(walker) => At::of_step(walker.start()),
        }
    }

    fn next(&self, at: At, letter: u8) -> Steps<At> {
        match (self, at) {
            (Self::Pattern(walker), At::Pattern(state)) => At::of_step(walker.next(state, letter)),
            (Self::Text(text, rest), At::Text(position)) => Ok(match text.get(position) {
                Some(byte) if *byte == letter => At::of_text(text, *rest, position + 1),
                None if *rest == Rest::Below && letter == b'/' => At::All,
                _ => At::Dead,
            }),
            (_, at) => Ok(at),
        }
    }

    fn accepts(&self, at: At) -> Steps<bool> {
        match (self, at) {
            (_, At::All) => Ok(true),
            (Self::Pattern(walker), At::Pattern(state)) => walker.accepts(state).ok_or(Unclear),
            (Self::Text(text, _), At::Text(position)) => Ok(position == text.len()),
            _ => Ok(false),
        }
    }

    /// Bytes of one class lead to the same states.
    fn class(&self, byte: u8) -> u16 {
        match self {
            Self::Pattern(walker) => walker.class(byte).into(),
            // Each of its bytes is a class by itself, and so is a slash.
            Self::Text(text, _) if byte == b'/' || text.contains(&byte) => u16::from(byte) + 1,
            Self::Text(..) => 0,
        }
    }
}

impl At {
    fn of_text(text: &[u8], rest: Rest, position: usize) -> Self {
        if position == text.len() && rest == Rest::Anything { Self::All } else { Self::Text(position) }
    }

    fn of_step(step: Step) -> Steps<Self> {
        match step {
            Step::To(state) => Ok(Self::Pattern(state)),
            Step::Dead => Ok(Self::Dead),
            Step::Unclear => Err(Unclear),
        }
    }
}

fn letters<'m>(machines: impl Iterator<Item = &'m Machine<'m>> + Clone) -> Vec<u8> {
    let plain = (b'a'..=b'z').chain(b'0'..=b'9').chain(b'A'..=b'Z').chain(*b"-_./");
    let others = (0x21..0x7f).chain([b' ']).chain(0x80..=0xff).chain(0..0x20).chain([0x7f]);
    let others = others.filter(|byte: &u8| !byte.is_ascii_alphanumeric() && !b"-_./".contains(byte));
    let mut seen = HashSet::new();
    plain
        .chain(others)
        .filter(|byte| seen.insert(machines.clone().map(|m| m.class(*byte)).collect::<Vec<_>>()))
        .collect()
}
