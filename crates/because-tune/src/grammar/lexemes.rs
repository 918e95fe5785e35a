use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::derivre::StateID;
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::{LexemeSet, RegexVec};
use llguidance::toktrie::TokTrie;

/// States looked at in a search for the end of a lexeme.
const MOST_SEARCHED: usize = 50_000;
/// States looked at for the longest way to the end.
const MOST_SURVEYED: usize = 400;

/// The smallest words of a grammar (brackets, names, strings, numbers), each a regular expression over bytes: where one
/// stands after some bytes, and the shortest way to its end from there.
pub(super) struct Lexemes {
    automaton: RegexVec,
    size: usize,
    starts: HashMap<u32, StateID>,
    ends: HashMap<StateID, Option<Arc<Ending>>>,
}

/// The shortest way to the end of a lexeme.
pub(super) struct Ending {
    pub(super) bytes: Vec<u8>,
    /// The same in tokens.
    pub(super) tokens: Vec<u32>,
}

impl Lexemes {
    pub(super) fn new(spec: &LexerSpec) -> Result<Self, String> {
        // What follows has bounds of its own.
        let mut limits = ParserLimits {
            initial_lexer_fuel: u64::MAX / 2,
            max_lexer_states: usize::MAX / 2,
            ..ParserLimits::default()
        };
        Ok(Self {
            automaton: spec
                .to_regex_vec(&mut limits)
                .map_err(|error| error.to_string())?,
            size: spec.lexemes.len(),
            starts: HashMap::new(),
            ends: HashMap::new(),
        })
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
    pub(super) fn ending(&mut self, state: StateID, tokens: &TokTrie) -> Option<Arc<Ending>> {
        if let Some(known) = self.ends.get(&state) {
            return known.clone();
        }
        // What is forced is best plain text; a pattern may ask for other bytes.
        let found = self
            .search(state, &plain_bytes())
            .or_else(|| self.search(state, &all_bytes()));
        let ending = found.map(|bytes| {
            Arc::new(Ending {
                tokens: tokens.greedy_tokenize(&bytes),
                bytes,
            })
        });
        self.ends.insert(state, ending.clone());
        ending
    }

    /// Breadth first.
    fn search(&mut self, from: StateID, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut reached: Vec<(StateID, usize, u8)> = vec![(from, usize::MAX, 0)];
        let mut seen = HashSet::from([from]);
        let mut place = 0;
        while place < reached.len() && reached.len() < MOST_SEARCHED {
            let here = reached[place].0;
            if self.may_end(here) {
                let mut way = Vec::new();
                let mut at = place;
                while reached[at].1 != usize::MAX {
                    way.push(reached[at].2);
                    at = reached[at].1;
                }
                way.reverse();
                return Some(way);
            }
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
        let bytes = all_bytes();
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
            if states.len() > MOST_SURVEYED {
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

fn all_bytes() -> Vec<u8> {
    (0..=255).collect()
}
