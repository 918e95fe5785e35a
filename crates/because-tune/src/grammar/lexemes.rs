use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::derivre::StateID;
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::{LexemeSet, LexerStats, RegexVec};
use llguidance::toktrie::TokTrie;

/// States looked at for the longest way to the end.
const MOST_SURVEYED: usize = 400;
/// States that the automaton of one schema may ever have.
const MOST_STATES: usize = 100_000;
/// States above which nothing is searched any more, so that what is searched does not lose the automaton.
const MOST_STATES_SEARCHED: usize = MOST_STATES / 2;
/// States above which a schema is compiled anew.
const MOST_STATES_KEPT: usize = MOST_STATES / 4;
/// Bytes of the ways that are known; beyond, they are searched again.
const MOST_WRITTEN: usize = 32 << 20;
/// Steps that searches leave. One state takes far fewer.
const RESERVE: u64 = 20_000;

/// What may be spent before [`Lexemes::refuel`] is called again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fuel {
    /// Steps of making states, about 15,000 a millisecond. Where they do not suffice, the automaton is lost for good.
    pub(super) steps: u64,
    /// States looked at in searches for an end. Where they do not suffice, none is found.
    pub(super) searched: usize,
}

impl Fuel {
    /// All that is found out about a schema before its first answer.
    pub(super) const SCHEMA: Self = Self {
        steps: 2_000_000,
        searched: 200_000,
    };
    /// For one token.
    pub(super) const TOKEN: Self = Self {
        steps: 200_000,
        searched: 50_000,
    };
    /// For the tokens that are tried beside one known way to the end.
    pub(super) const TRIED: Self = Self {
        steps: 200_000,
        searched: 4_000,
    };
}

/// The smallest words of a grammar (brackets, names, strings, numbers), each a regular expression over bytes: where one
/// stands after some bytes, and the shortest way to its end from there.
pub(super) struct Lexemes {
    automaton: RegexVec,
    size: usize,
    starts: HashMap<u32, StateID>,
    ends: HashMap<StateID, Option<Ending>>,
    /// Bytes of memory of the ways in `ends`.
    written: usize,
    /// States that may still be looked at in searches.
    searched: usize,
    /// Of the bytes that the automaton does not tell apart one each, in the order they are tried.
    plain: Vec<u8>,
    all: Vec<u8>,
}

/// The shortest way to the end of a lexeme. All states on one way share it.
#[derive(Clone)]
pub(super) struct Ending {
    way: Arc<Way>,
    from: usize,
}

struct Way {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
}

/// The longest token at one byte of a way.
#[derive(Clone, Copy)]
struct Cut {
    /// None where no token begins with the byte.
    token: Option<u32>,
    width: u32,
    /// Tokens from here to the end.
    count: u32,
}

impl Ending {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.way.bytes[self.from..]
    }

    /// How many tokens it has.
    pub(super) fn count(&self) -> usize {
        let cut = self.way.cuts.get(self.from);
        cut.map_or(0, |cut| cut.count as usize)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = u32> {
        let mut at = self.from;
        std::iter::from_fn(move || {
            let cut = *self.way.cuts.get(at)?;
            at += cut.width as usize;
            Some(cut.token)
        })
        .flatten()
    }
}

impl Way {
    fn new(bytes: Vec<u8>, tokens: &TokTrie) -> Self {
        let mut cuts: Vec<Cut> = Vec::with_capacity(bytes.len());
        for at in (0..bytes.len()).rev() {
            let (token, width) = match tokens.prefix_token_id(&bytes[at..]) {
                (_, 0) => (None, 1),
                (token, width) => (Some(token), width),
            };
            // From the end back, so what follows is among those already there.
            let after = bytes.len() - at - width;
            let rest = after.checked_sub(1).map_or(0, |last| cuts[last].count);
            cuts.push(Cut {
                token,
                width: width as u32,
                count: rest + u32::from(token.is_some()),
            });
        }
        cuts.reverse();
        Self { bytes, cuts }
    }
}

impl Lexemes {
    pub(super) fn new(spec: &LexerSpec) -> Result<Self, String> {
        // Of these only the fuel that the automaton is made with counts; what is spent later is bounded below.
        let mut automaton = spec
            .to_regex_vec(&mut ParserLimits::default())
            .map_err(|error| error.to_string())?;
        automaton.set_max_states(MOST_STATES);
        let distinct = |bytes: Vec<u8>| {
            let mut seen = HashSet::new();
            let one = |byte: &u8| seen.insert(automaton.alpha().map(*byte));
            bytes.into_iter().filter(one).collect()
        };
        let (plain, all) = (distinct(plain_bytes()), distinct((0..=255).collect()));
        let mut lexemes = Self {
            automaton,
            size: spec.lexemes.len(),
            starts: HashMap::new(),
            ends: HashMap::new(),
            written: 0,
            searched: 0,
            plain,
            all,
        };
        lexemes.refuel(Fuel::SCHEMA);
        Ok(lexemes)
    }

    /// Sets what may be spent from here on.
    pub(super) fn refuel(&mut self, fuel: Fuel) {
        self.automaton.set_fuel(fuel.steps);
        self.searched = fuel.searched;
    }

    /// Why the automaton leads nowhere any more, if it does: there was too little fuel, or it has too many states.
    pub(super) fn fault(&self) -> Option<String> {
        self.automaton.get_error()
    }

    /// Whether searches have to end here.
    fn is_low(&self) -> bool {
        self.automaton.get_fuel() < RESERVE
    }

    /// Whether there is no room for many more answers.
    pub(super) fn is_full(&self) -> bool {
        self.fault().is_some() || self.automaton.stats().num_states > MOST_STATES_KEPT
    }

    /// About how many bytes of memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let entry = size_of::<(StateID, Option<Ending>)>() + size_of::<usize>();
        bytes_of(&self.automaton.stats()) + self.ends.len() * entry + self.written
    }

    /// Where a lexeme begins.
    pub(super) fn start(&mut self, lexeme: u32) -> StateID {
        if let Some(&state) = self.starts.get(&lexeme) {
            return state;
        }
        let mut only = LexemeSet::new(self.size);
        only.add(LexemeIdx::new(lexeme as usize));
        let state = self.automaton.initial_state(&only);
        self.starts.insert(lexeme, state);
        state
    }

    /// Where it stands after one more byte, if that may come.
    pub(super) fn after(&mut self, state: StateID, byte: u8) -> Option<StateID> {
        let next = self.automaton.transition(state, byte);
        (!next.is_dead()).then_some(next)
    }

    /// Whether the lexeme may end here.
    pub(super) fn may_end(&self, state: StateID) -> bool {
        let here = self.automaton.state_desc(state);
        here.greedy_accepting.is_some() || here.lazy_accepting.is_some()
    }

    /// The shortest way to its end; none where the search would take too long.
    pub(super) fn ending(&mut self, state: StateID, tokens: &TokTrie) -> Option<Ending> {
        if let Some(known) = self.ends.get(&state) {
            return known.clone();
        }
        // What is forced is best plain text; a pattern may ask for other bytes.
        let (plain, all) = (self.plain.clone(), self.all.clone());
        let found = self
            .search(state, &plain)
            .or_else(|| self.search(state, &all));
        let Some((bytes, states)) = found else {
            // With more fuel one may be found.
            if self.searched > 0 && self.fault().is_none() {
                self.ends.insert(state, None);
            }
            return None;
        };
        if self.written > MOST_WRITTEN {
            self.ends.clear();
            self.written = 0;
        }
        let way = Arc::new(Way::new(bytes, tokens));
        self.written += way.bytes.len() * (1 + size_of::<Cut>());
        // What is left of a shortest way is a shortest way.
        for (from, state) in states.into_iter().enumerate() {
            let way = Arc::clone(&way);
            let ending = || Some(Ending { way, from });
            self.ends.entry(state).or_insert_with(ending);
        }
        self.ends.get(&state).cloned().flatten()
    }

    /// Breadth first: the bytes of the way, and the states before each of them and at the end.
    fn search(&mut self, from: StateID, bytes: &[u8]) -> Option<(Vec<u8>, Vec<StateID>)> {
        let mut reached: Vec<(StateID, usize, u8)> = vec![(from, usize::MAX, 0)];
        let mut seen = HashSet::from([from]);
        let mut place = 0;
        if self.automaton.stats().num_states > MOST_STATES_SEARCHED {
            self.searched = 0;
        }
        while place < reached.len() {
            if self.is_low() {
                self.searched = 0;
            }
            let here = reached[place].0;
            if self.may_end(here) {
                let (mut way, mut states) = (Vec::new(), vec![here]);
                let mut at = place;
                while reached[at].1 != usize::MAX {
                    way.push(reached[at].2);
                    at = reached[at].1;
                    states.push(reached[at].0);
                }
                way.reverse();
                states.reverse();
                return Some((way, states));
            }
            self.searched = self.searched.checked_sub(1)?;
            for &byte in bytes {
                if let Some(next) = self.after(here, byte)
                    && seen.insert(next)
                {
                    reached.push((next, place, byte));
                }
            }
            place += 1;
        }
        None
    }

    /// The most bytes that an end may be away, once some of the lexeme is written; none where there are too many states
    /// to say.
    pub(super) fn farthest(&mut self, lexeme: u32) -> Option<usize> {
        let start = self.start(lexeme);
        let bytes = self.all.clone();
        let mut states = vec![start];
        let mut places = HashMap::from([(start, 0)]);
        let mut before: Vec<Vec<usize>> = vec![Vec::new()];
        let mut place = 0;
        while place < states.len() {
            let mut nexts: Vec<StateID> = bytes
                .iter()
                .filter_map(|&byte| self.after(states[place], byte))
                .collect();
            nexts.sort_unstable_by_key(|next| next.as_usize());
            nexts.dedup();
            for next in nexts {
                let to = *places.entry(next).or_insert_with(|| {
                    states.push(next);
                    before.push(Vec::new());
                    states.len() - 1
                });
                before[to].push(place);
            }
            place += 1;
            if states.len() > MOST_SURVEYED || self.is_low() {
                return None;
            }
        }
        // From the ends back.
        let mut away = vec![usize::MAX; states.len()];
        let mut layer: Vec<usize> = (0..states.len())
            .filter(|&place| self.may_end(states[place]))
            .collect();
        for &place in &layer {
            away[place] = 0;
        }
        let mut distance = 0;
        while !layer.is_empty() {
            distance += 1;
            let mut farther = Vec::new();
            for place in layer {
                for &from in &before[place] {
                    if away[from] == usize::MAX {
                        away[from] = distance;
                        farther.push(from);
                    }
                }
            }
            layer = farther;
        }
        // A state without a way to an end is none that the automaton keeps.
        away.into_iter().filter(|&away| away != usize::MAX).max()
    }
}

/// Those of plain texts, the ones that end something first, then letters, so that what must be filled is filled with them.
fn plain_bytes() -> Vec<u8> {
    let mut bytes = vec![b'"'];
    bytes.extend(b'a'..=b'z');
    bytes.extend((b' '..=b'~').filter(|byte| *byte != b'"' && !byte.is_ascii_lowercase()));
    bytes
}

/// About how many bytes of memory an automaton takes; what it counts itself leaves out what each state says of its lexemes.
pub(super) fn bytes_of(stats: &LexerStats) -> usize {
    const STATE: usize = 200;
    stats.num_bytes + stats.num_states * (STATE + stats.num_regexps / 8)
}
