use std::collections::HashMap;

use llguidance::earley::{CGrammar, CSymIdx};
use llguidance::toktrie::TokTrie;

use crate::grammar::lexemes::Lexemes;

/// More than any answer has.
pub(super) const NEVER: usize = usize::MAX / 4;

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

    /// The smallest text of each symbol: lexemes by their automaton, the others by their rules until nothing changes.
    fn measure(&mut self, lexemes: &mut Lexemes, tokens: &TokTrie) -> Result<(), String> {
        self.smallest = vec![NEVER; self.symbols.len()];
        self.best = vec![None; self.symbols.len()];
        for (place, symbol) in self.symbols.iter().enumerate() {
            if let Some(lexeme) = symbol.lexeme {
                let start = lexemes.start(lexeme);
                if let Some(ending) = lexemes.ending(start, tokens) {
                    self.smallest[place] = ending.tokens.len();
                }
            } else if symbol.may_be_empty {
                self.smallest[place] = 0;
            }
        }
        loop {
            let mut changed = false;
            for (place, rule) in self.rules.iter().enumerate() {
                let sum = self.sum(&rule.parts);
                // Only what is smaller, so that no rule is its own way to the end.
                if sum < self.smallest[rule.of as usize] {
                    self.smallest[rule.of as usize] = sum;
                    self.best[rule.of as usize] = Some(place as u32);
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        if self.smallest[self.start as usize] >= NEVER {
            return Err("no JSON fits it, or none that could be found".into());
        }
        for place in 0..self.rules.len() {
            let parts = &self.rules[place].parts;
            let rest = (0..=parts.len()).map(|at| self.sum(&parts[at..])).collect();
            self.rules[place].rest = rest;
        }
        Ok(())
    }

    fn sum(&self, parts: &[u32]) -> usize {
        let each = parts.iter().map(|&part| self.smallest[part as usize]);
        each.fold(0, |sum, tokens| (sum + tokens).min(NEVER))
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
        let mut most = self.farthest.clone();
        // Each round goes one rule deeper; without left recursion there are no more rounds than symbols.
        for _ in 0..=self.symbols.len() {
            let mut changed = false;
            for rule in &self.rules {
                for (at, &part) in rule.parts.iter().enumerate() {
                    if !(at == 0 && part == rule.of) {
                        let here = (most[part as usize] + rule.rest[at + 1]).min(NEVER);
                        if here > most[rule.of as usize] {
                            most[rule.of as usize] = here;
                            changed = true;
                        }
                    }
                    if !self.symbols[part as usize].may_be_empty {
                        break;
                    }
                }
            }
            if !changed {
                self.step = most.iter().copied().max().filter(|&most| most < NEVER);
                return;
            }
        }
    }
}
