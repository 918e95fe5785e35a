use std::collections::{HashMap, HashSet};

use llguidance::derivre::StateID;
use llguidance::toktrie::TokTrie;

use crate::grammar::lexemes::{Ending, Lexemes};
use crate::grammar::rules::{NEVER, Rules};

/// Tokens counted lexeme by lexeme for one that joins them, at most: an end with more than so many times its room is not
/// written to see how long it is.
const JOINED: usize = 4;

/// How far an answer is: which rules are open, and how many tokens their end is away.
///
/// An Earley parser beside the one that makes the masks, which does not tell what it holds. One row for each lexeme read;
/// the lexeme under way is known by the states of all those it may be.
#[derive(Clone)]
pub(super) struct Chart {
    rows: Vec<Row>,
    /// What may be under way: the symbol and where its automaton stands.
    alive: Vec<(u32, StateID)>,
}

#[derive(Clone, Default)]
struct Row {
    items: Vec<Item>,
    /// By symbol that is waited for: the fewest tokens after it and the item they are of, and the most.
    waits: HashMap<u32, Wait>,
}

/// A rule of which the parts before `at` are read, from row `from` on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Item {
    rule: u32,
    at: u32,
    from: u32,
}

#[derive(Clone, Copy)]
struct Wait {
    fewest: usize,
    /// The item that gives the fewest; none where the whole answer ends.
    by: Option<Item>,
    most: usize,
}

impl Chart {
    pub(super) fn new(rules: &Rules, lexemes: &mut Lexemes) -> Self {
        let mut chart = Self {
            rows: Vec::new(),
            alive: Vec::new(),
        };
        chart.close(rules, Row::default(), Some(rules.start));
        chart.begin(rules, lexemes);
        chart
    }

    /// Whether all bytes may come next; if not, the chart is as it was.
    pub(super) fn read(&mut self, rules: &Rules, lexemes: &mut Lexemes, bytes: &[u8]) -> bool {
        let (rows, alive) = (self.rows.len(), self.alive.clone());
        let may = bytes
            .iter()
            .all(|&byte| self.read_byte(rules, lexemes, byte));
        if !may {
            self.rows.truncate(rows);
            self.alive = alive;
        }
        may
    }

    /// Reads bytes, tells a short end after them that fits the room if they may come, and takes them back.
    pub(super) fn ending_after(
        &mut self,
        rules: &Rules,
        lexemes: &mut Lexemes,
        tokens: &TokTrie,
        bytes: &[u8],
        room: usize,
    ) -> Option<Vec<u32>> {
        let (rows, alive) = (self.rows.len(), self.alive.clone());
        let may = bytes
            .iter()
            .all(|&byte| self.read_byte(rules, lexemes, byte));
        let ending = may.then(|| self.ending(rules, lexemes, tokens, room));
        let ending = ending.flatten();
        self.rows.truncate(rows);
        self.alive = alive;
        ending
    }

    fn read_byte(&mut self, rules: &Rules, lexemes: &mut Lexemes, byte: u8) -> bool {
        if self.step(lexemes, byte) {
            return true;
        }
        // The byte is none of the lexeme under way, so that has ended.
        let ended: Vec<u32> = self
            .alive
            .iter()
            .filter(|&&(_, state)| lexemes.may_end(state))
            .map(|&(symbol, _)| symbol)
            .collect();
        if ended.is_empty() {
            return false;
        }
        let last = &self.rows[self.rows.len() - 1];
        let mut row = Row::default();
        for item in &last.items {
            let parts = &rules.rules[item.rule as usize].parts;
            if let Some(part) = parts.get(item.at as usize)
                && ended.contains(part)
            {
                row.items.push(Item {
                    at: item.at + 1,
                    ..*item
                });
            }
        }
        self.close(rules, row, None);
        self.begin(rules, lexemes);
        self.step(lexemes, byte)
    }

    fn step(&mut self, lexemes: &mut Lexemes, byte: u8) -> bool {
        let next: Vec<(u32, StateID)> = self
            .alive
            .iter()
            .filter_map(|&(symbol, state)| Some((symbol, lexemes.after(state, byte)?)))
            .collect();
        let any = !next.is_empty();
        if any {
            self.alive = next;
        }
        any
    }

    /// All lexemes that the last row waits for.
    fn begin(&mut self, rules: &Rules, lexemes: &mut Lexemes) {
        let last = &self.rows[self.rows.len() - 1];
        let mut begun: Vec<(u32, StateID)> = last
            .waits
            .keys()
            .filter_map(|&symbol| {
                let lexeme = rules.symbols[symbol as usize].lexeme?;
                Some((symbol, lexemes.start(lexeme)))
            })
            .collect();
        begun.sort_unstable_by_key(|&(symbol, _)| symbol);
        self.alive = begun;
    }

    /// Adds a row with all that its items ask for and end.
    fn close(&mut self, rules: &Rules, mut row: Row, start: Option<u32>) {
        let here = self.rows.len() as u32;
        let mut seen: HashSet<Item> = row.items.iter().copied().collect();
        let mut asked = HashSet::new();
        let mut open: Vec<u32> = start.into_iter().collect();
        let mut place = 0;
        loop {
            while let Some(symbol) = open.pop() {
                if asked.insert(symbol) {
                    for &rule in &rules.symbols[symbol as usize].rules {
                        let item = Item {
                            rule,
                            at: 0,
                            from: here,
                        };
                        if seen.insert(item) {
                            row.items.push(item);
                        }
                    }
                }
            }
            let Some(&item) = row.items.get(place) else {
                break;
            };
            place += 1;
            let rule = &rules.rules[item.rule as usize];
            let mut ahead = Vec::new();
            match rule.parts.get(item.at as usize) {
                Some(&part) => {
                    let symbol = &rules.symbols[part as usize];
                    if symbol.lexeme.is_none() {
                        open.push(part);
                    }
                    if symbol.may_be_empty {
                        ahead.push(item);
                    }
                }
                // What it was for goes on; a rule that ends where it began is empty and was stepped over.
                None if item.from < here => {
                    let waiting = self.rows[item.from as usize].items.iter();
                    ahead.extend(waiting.copied().filter(|waiting| {
                        let parts = &rules.rules[waiting.rule as usize].parts;
                        parts.get(waiting.at as usize) == Some(&rule.of)
                    }));
                }
                None => {}
            }
            for item in ahead {
                let item = Item {
                    at: item.at + 1,
                    ..item
                };
                if seen.insert(item) {
                    row.items.push(item);
                }
            }
        }
        self.weigh(rules, &mut row, here);
        self.rows.push(row);
    }

    /// What comes after each symbol that a row waits for: the rest of the rule that waits, and what comes after the
    /// symbol of that rule where it began.
    fn weigh(&self, rules: &Rules, row: &mut Row, here: u32) {
        let mut waits: HashMap<u32, Wait> = HashMap::new();
        if here == 0 {
            let end = Wait {
                fewest: 0,
                by: None,
                most: 0,
            };
            waits.insert(rules.start, end);
        }
        // Costs go up from rules that began in earlier rows, so that few rounds do; a rule that begins with itself adds
        // what may be left out, and counts only towards the fewest.
        for round in 0..=row.items.len() + 1 {
            let mut changed = false;
            for item in &row.items {
                let rule = &rules.rules[item.rule as usize];
                let Some(&part) = rule.parts.get(item.at as usize) else {
                    continue;
                };
                let after = match item.from == here {
                    true => waits.get(&rule.of),
                    false => self.rows[item.from as usize].waits.get(&rule.of),
                };
                let Some(&after) = after else {
                    continue;
                };
                let rest = rule.rest[item.at as usize + 1];
                let fewest = (after.fewest + rest).min(NEVER);
                let most = match item.at == 0 && part == rule.of {
                    true => 0,
                    false if round > row.items.len() => NEVER,
                    false => (after.most + rest).min(NEVER),
                };
                let wait = waits.entry(part).or_insert(Wait {
                    fewest: usize::MAX,
                    by: None,
                    most: 0,
                });
                if fewest < wait.fewest {
                    (wait.fewest, wait.by) = (fewest, Some(*item));
                    changed = true;
                }
                if most > wait.most {
                    wait.most = most;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        row.waits = waits;
    }

    /// The most tokens that the end may be away, whichever of the rules that are open turns out to be meant; none where
    /// there is no bound.
    pub(super) fn most(&self, rules: &Rules) -> Option<usize> {
        let last = &self.rows[self.rows.len() - 1];
        self.alive
            .iter()
            .map(|(symbol, _)| last.waits[symbol].most + rules.farthest[*symbol as usize])
            .max()
            .filter(|&most| most < NEVER)
    }

    /// A short way to the end of the answer, in tokens, that leaves one of the room for what ends it.
    pub(super) fn ending(
        &self,
        rules: &Rules,
        lexemes: &mut Lexemes,
        tokens: &TokTrie,
        room: usize,
    ) -> Option<Vec<u32>> {
        let row = self.rows.len() - 1;
        let (cost, symbol, ending) = self
            .alive
            .iter()
            .filter_map(|&(symbol, state)| {
                let ending = lexemes.ending(state, tokens)?;
                let after = self.rows[row].waits[&symbol].fewest;
                (after < NEVER).then_some((ending.count() + after, symbol, ending))
            })
            .min_by_key(|(cost, _, _)| *cost)?;
        if cost > room.saturating_mul(JOINED) {
            return None;
        }
        let mut way = Way::default();
        way.add(&ending);
        let (mut row, mut symbol) = (row, symbol);
        while let Some(item) = self.rows[row].waits[&symbol].by {
            let rule = &rules.rules[item.rule as usize];
            for &part in &rule.parts[item.at as usize + 1..] {
                way.write(rules, lexemes, tokens, part)?;
            }
            (row, symbol) = (item.from as usize, rule.of);
        }
        // Lexeme by lexeme is what was counted; the longest tokens are mostly fewer.
        let longest = tokens.greedy_tokenize(&way.bytes);
        let fewest = match longest.len() < way.tokens.len() {
            true => longest,
            false => way.tokens,
        };
        (fewest.len() < room).then_some(fewest)
    }
}

#[derive(Default)]
struct Way {
    bytes: Vec<u8>,
    tokens: Vec<u32>,
}

impl Way {
    /// The smallest text of a symbol. Rules lie as deep within one another as an object has fields, so they are no calls
    /// within one another.
    fn write(
        &mut self,
        rules: &Rules,
        lexemes: &mut Lexemes,
        tokens: &TokTrie,
        symbol: u32,
    ) -> Option<()> {
        let mut open = vec![symbol];
        while let Some(symbol) = open.pop() {
            if let Some(lexeme) = rules.symbols[symbol as usize].lexeme {
                let start = lexemes.start(lexeme);
                self.add(&lexemes.ending(start, tokens)?);
            } else if let Some(best) = rules.best[symbol as usize] {
                // One without is empty.
                open.extend(rules.rules[best as usize].parts.iter().rev());
            }
        }
        Some(())
    }

    fn add(&mut self, ending: &Ending) {
        self.bytes.extend_from_slice(ending.bytes());
        self.tokens.extend(ending.tokens());
    }
}
