use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use llguidance::earley::{CGrammar, CSymIdx};
use llguidance::toktrie::TokTrie;

use crate::grammar::lexemes::Lexemes;

/// More than any answer has.
pub(super) const NEVER: usize = usize::MAX / 4;

/// Tokens of the smallest answer of a schema at most; contexts of models are no longer, and an end is written out whenever
/// it is near.
pub(super) const MOST_TOKENS: usize = 1 << 17;

/// The context-free rules of a compiled schema, with the fewest tokens that each of their symbols can be written in.
pub(super) struct Rules {
    pub(super) symbols: Vec<Symbol>,
    pub(super) rules: Vec<Rule>,
    pub(super) start: u32,
    /// Tokens of the smallest text of each symbol.
    pub(super) smallest: Vec<usize>,
    /// The rule that gives it, where it is by a rule.
    pub(super) best: Vec<Option<u32>>,
    /// How many tokens farther the end may be once one more lexeme has begun; none where there is no bound.
    pub(super) step: Option<usize>,
    /// The most tokens that the end of an answer may ever be away; none where rules are within themselves.
    pub(super) depth: Option<usize>,
    /// By symbol, the most tokens that the end of a lexeme may be away once it has begun.
    pub(super) farthest: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Symbol {
    pub(super) lexeme: Option<u32>,
    pub(super) rules: Vec<u32>,
    pub(super) may_be_empty: bool,
}

pub(super) struct Rule {
    pub(super) of: u32,
    pub(super) parts: Vec<u32>,
    /// Tokens of the smallest text of the parts from each place on; one more entry than parts.
    pub(super) rest: Vec<usize>,
}

impl Rules {
    /// `longest` bounds what is left of a lexeme that has too many states to be looked through.
    pub(super) fn read(
        grammar: &CGrammar,
        lexemes: &mut Lexemes,
        tokens: &TokTrie,
        longest: Option<usize>,
    ) -> Result<Self, String> {
        let mut rules = Self {
            symbols: Vec::new(),
            rules: Vec::new(),
            start: 0,
            smallest: Vec::new(),
            best: Vec::new(),
            step: None,
            depth: None,
            farthest: Vec::new(),
        };
        let mut places: HashMap<CSymIdx, u32> = HashMap::new();
        let mut open = vec![grammar.start()];
        places.insert(grammar.start(), 0);
        rules.symbols.push(Symbol::default());
        while let Some(index) = open.pop() {
            let data = grammar.sym_data(index);
            let of = places[&index];
            let mut own = Vec::new();
            for &rule in &data.rules {
                let (parts, _, _) = grammar.rule_rhs(rule);
                let parts = parts
                    .iter()
                    .map(|part| {
                        *places.entry(*part).or_insert_with(|| {
                            rules.symbols.push(Symbol::default());
                            open.push(*part);
                            rules.symbols.len() as u32 - 1
                        })
                    })
                    .collect();
                own.push(rules.rules.len() as u32);
                rules.rules.push(Rule {
                    of,
                    parts,
                    rest: Vec::new(),
                });
            }
            rules.symbols[of as usize] = Symbol {
                lexeme: data.lexeme.map(|lexeme| lexeme.as_usize() as u32),
                rules: own,
                may_be_empty: data.is_nullable,
            };
        }
        rules.measure(lexemes, tokens)?;
        rules.survey(lexemes, longest);
        Ok(rules)
    }

    /// The smallest text of each symbol: lexemes by their automaton, the others by their rules, the smallest first, so that
    /// each is found once and no rule is its own way to the end (Knuth, "A generalization of Dijkstra's algorithm").
    fn measure(&mut self, lexemes: &mut Lexemes, tokens: &TokTrie) -> Result<(), String> {
        self.smallest = vec![NEVER; self.symbols.len()];
        self.best = vec![None; self.symbols.len()];
        let mut open = BinaryHeap::new();
        for (place, symbol) in self.symbols.iter().enumerate() {
            if let Some(lexeme) = symbol.lexeme {
                let start = lexemes.start(lexeme);
                if let Some(ending) = lexemes.ending(start, tokens) {
                    open.push(Reverse((ending.count(), place as u32, None)));
                }
            } else if symbol.may_be_empty {
                open.push(Reverse((0, place as u32, None)));
            }
        }
        // By symbol the rules it is a part of, as often as it is.
        let mut within: Vec<Vec<u32>> = vec![Vec::new(); self.symbols.len()];
        let mut missing = Vec::with_capacity(self.rules.len());
        for (place, rule) in self.rules.iter().enumerate() {
            missing.push((rule.parts.len(), 0));
            for &part in &rule.parts {
                within[part as usize].push(place as u32);
            }
            if rule.parts.is_empty() {
                open.push(Reverse((0, rule.of, Some(place as u32))));
            }
        }
        while let Some(Reverse((tokens, symbol, best))) = open.pop() {
            if tokens >= self.smallest[symbol as usize] {
                continue;
            }
            self.smallest[symbol as usize] = tokens;
            self.best[symbol as usize] = best;
            for &place in &within[symbol as usize] {
                let (parts, sum) = &mut missing[place as usize];
                *parts -= 1;
                *sum = (*sum + tokens).min(NEVER);
                if *parts == 0 {
                    let of = self.rules[place as usize].of;
                    open.push(Reverse((*sum, of, Some(place))));
                }
            }
        }
        if let Some(fault) = lexemes.fault() {
            return Err(format!("its strings take too long to follow: {fault}"));
        }
        let smallest = self.smallest[self.start as usize];
        if smallest >= NEVER {
            return Err("no JSON fits it, or none that could be found".into());
        }
        if smallest > MOST_TOKENS {
            return Err(format!(
                "the smallest JSON that fits it has {smallest} tokens, more than {MOST_TOKENS}"
            ));
        }
        for place in 0..self.rules.len() {
            let parts = &self.rules[place].parts;
            let mut rest: Vec<usize> = Vec::with_capacity(parts.len() + 1);
            rest.push(0);
            for &part in parts.iter().rev() {
                let after = rest[rest.len() - 1] + self.smallest[part as usize];
                rest.push(after.min(NEVER));
            }
            rest.reverse();
            self.rules[place].rest = rest;
        }
        Ok(())
    }

    /// How far one lexeme more can take an answer from its end: what is left of the lexeme itself and of every rule that
    /// begins with it.
    fn survey(&mut self, lexemes: &mut Lexemes, longest: Option<usize>) {
        self.farthest = vec![0; self.symbols.len()];
        for place in 0..self.symbols.len() {
            if let Some(lexeme) = self.symbols[place].lexeme {
                self.farthest[place] = match lexemes.farthest(lexeme).or(longest) {
                    Some(bytes) => bytes,
                    None => NEVER,
                };
            }
        }
        let most = self.deepest(Parts::First).into_iter().max();
        self.step = most.filter(|&most| most < NEVER);
        let depth = self.deepest(Parts::All)[self.start as usize];
        let depth = depth.max(self.smallest[self.start as usize]);
        self.depth = Some(depth).filter(|&depth| depth < NEVER);
    }

    /// By symbol, the most tokens that are left of it while one of its lexemes is written: a first one, or any. A rule that
    /// begins with its own symbol adds only what may be left out. [`NEVER`] where rules are within themselves, or above
    /// such.
    fn deepest(&self, of: Parts) -> Vec<usize> {
        let mut most = self.farthest.clone();
        // By symbol, what it is a part of, and what is left of that after it.
        let mut above: Vec<Vec<(u32, usize)>> = vec![Vec::new(); self.symbols.len()];
        let mut missing = vec![0; self.symbols.len()];
        for rule in &self.rules {
            for (at, &part) in rule.parts.iter().enumerate() {
                if !(at == 0 && part == rule.of) {
                    above[part as usize].push((rule.of, rule.rest[at + 1]));
                    missing[rule.of as usize] += 1;
                }
                if of == Parts::First && !self.symbols[part as usize].may_be_empty {
                    break;
                }
            }
        }
        let mut open: Vec<usize> = (0..most.len()).filter(|&one| missing[one] == 0).collect();
        while let Some(part) = open.pop() {
            for &(of, rest) in &above[part] {
                let of = of as usize;
                most[of] = most[of].max((most[part] + rest).min(NEVER));
                missing[of] -= 1;
                if missing[of] == 0 {
                    open.push(of);
                }
            }
        }
        for (most, missing) in most.iter_mut().zip(missing) {
            if missing > 0 {
                *most = NEVER;
            }
        }
        most
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Parts {
    First,
    All,
}
