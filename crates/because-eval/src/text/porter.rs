//! The Porter stemmer (Porter 1980) with the departures that NLTK calls its extensions, which is what rouge-score uses.
//! It is not Porter2: *generous* becomes *gener* here and *generous* there.

/// The stem of a rouge-score token: only what is longer than three characters is stemmed.
pub(crate) fn stem_token(token: &str) -> String {
    if token.len() > 3 {
        stem(token)
    } else {
        token.to_owned()
    }
}

/// The stem of a word of lower-case ASCII letters and digits; a digit counts as a consonant.
fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let mut word = word.to_owned();
    drop_plural(&mut word);
    drop_past_or_gerund(&mut word);
    if word.len() > 2 && word.ends_with('y') && is_consonant(word.as_bytes(), word.len() - 2) {
        replace_end(&mut word, 1, "i");
    }
    shorten_double_suffix(&mut word);
    apply(&mut word, STEP_3, |stem, _| measure(stem) > 0);
    apply(&mut word, STEP_4, |stem, suffix| {
        measure(stem) > 1 && (suffix != "ion" || stem.ends_with(['s', 't']))
    });
    drop_final_e(&mut word);
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
    word
}

const IRREGULAR: &[(&str, &str)] = &[
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

type Rule = (&'static str, &'static str);

/// In this order: the first suffix that fits decides, even where its condition then fails.
const STEP_2: &[Rule] = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
    ("logi", "log"),
];

const STEP_3: &[Rule] = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

const STEP_4: &[Rule] = &[
    ("al", ""),
    ("ance", ""),
    ("ence", ""),
    ("er", ""),
    ("ic", ""),
    ("able", ""),
    ("ible", ""),
    ("ant", ""),
    ("ement", ""),
    ("ment", ""),
    ("ent", ""),
    ("ion", ""),
    ("ou", ""),
    ("ism", ""),
    ("ate", ""),
    ("iti", ""),
    ("ous", ""),
    ("ive", ""),
    ("ize", ""),
];

/// Step 1a.
fn drop_plural(word: &mut String) {
    if word.ends_with("ies") && word.len() == 4 {
        replace_end(word, 3, "ie");
    } else if word.ends_with("sses") {
        replace_end(word, 2, "");
    } else if word.ends_with("ies") {
        replace_end(word, 3, "i");
    } else if word.ends_with('s') && !word.ends_with("ss") {
        word.pop();
    }
}

/// Step 1b.
fn drop_past_or_gerund(word: &mut String) {
    if word.ends_with("ied") {
        let kept = if word.len() == 4 { "ie" } else { "i" };
        return replace_end(word, 3, kept);
    }
    if let Some(stem) = word.strip_suffix("eed") {
        if measure(stem) > 0 {
            word.pop();
        }
        return;
    }
    let Some(kept) = ["ed", "ing"]
        .iter()
        .find_map(|suffix| word.strip_suffix(suffix).filter(|stem| has_vowel(stem)))
        .map(str::len)
    else {
        return;
    };
    word.truncate(kept);
    if ["at", "bl", "iz"].iter().any(|end| word.ends_with(end)) {
        word.push('e');
    } else if ends_in_double_consonant(word) {
        if !word.ends_with(['l', 's', 'z']) {
            word.pop();
        }
    } else if measure(word) == 1 && ends_cvc(word) {
        word.push('e');
    }
}

/// Step 2, with NLTK's second round where *alli* was taken off first.
fn shorten_double_suffix(word: &mut String) {
    while word
        .strip_suffix("alli")
        .is_some_and(|stem| measure(stem) > 0)
    {
        replace_end(word, 2, "");
    }
    apply(word, STEP_2, |stem, suffix| match suffix {
        // The l belongs to the stem here, so that geology keeps its short stem.
        "logi" => measure(&format!("{stem}l")) > 0,
        _ => measure(stem) > 0,
    });
}

/// Step 5a.
fn drop_final_e(word: &mut String) {
    let Some(stem) = word.strip_suffix('e') else {
        return;
    };
    let measure = measure(stem);
    if measure > 1 || (measure == 1 && !ends_cvc(stem)) {
        word.pop();
    }
}

fn apply(word: &mut String, rules: &[Rule], holds: impl Fn(&str, &str) -> bool) {
    let fitting = rules.iter().find_map(|(suffix, replacement)| {
        word.strip_suffix(suffix)
            .map(|stem| (stem, suffix, replacement))
    });
    if let Some((stem, suffix, replacement)) = fitting
        && holds(stem, suffix)
    {
        replace_end(word, suffix.len(), replacement);
    }
}

fn replace_end(word: &mut String, count: usize, replacement: &str) {
    word.truncate(word.len() - count);
    word.push_str(replacement);
}

/// Porter's m: how often a run of vowels is followed by a consonant.
fn measure(stem: &str) -> usize {
    let mut consonants = consonants(stem);
    let Some(mut before) = consonants.next() else {
        return 0;
    };
    let mut measure = 0;
    for consonant in consonants {
        measure += usize::from(!before && consonant);
        before = consonant;
    }
    measure
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

/// Whether each letter is a consonant; a y is one where it opens the word or follows a vowel.
fn consonants(word: &str) -> impl Iterator<Item = bool> {
    let mut before = false;
    word.bytes().map(move |letter| {
        before = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !before,
            _ => true,
        };
        before
    })
}

fn is_consonant(word: &[u8], at: usize) -> bool {
    match word[at] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        b'y' => {
            // Back over the run of y, which alternates, to what decides it; the first letter of a word is a consonant.
            let run = word[..=at]
                .iter()
                .rev()
                .take_while(|&&letter| letter == b'y')
                .count();
            let before_run = at + 1 - run;
            let opens_with_consonant =
                before_run == 0 || matches!(word[before_run - 1], b'a' | b'e' | b'i' | b'o' | b'u');
            opens_with_consonant == (run % 2 == 1)
        }
        _ => true,
    }
}

fn ends_in_double_consonant(word: &str) -> bool {
    let letters = word.as_bytes();
    let n = letters.len();
    n >= 2 && letters[n - 1] == letters[n - 2] && is_consonant(letters, n - 1)
}

/// Porter's *o: consonant, vowel, consonant other than w, x and y; NLTK adds the two-letter vowel and consonant.
fn ends_cvc(word: &str) -> bool {
    let letters = word.as_bytes();
    let n = letters.len();
    match n {
        0 | 1 => false,
        2 => !is_consonant(letters, 0) && is_consonant(letters, 1),
        _ => {
            is_consonant(letters, n - 3)
                && !is_consonant(letters, n - 2)
                && is_consonant(letters, n - 1)
                && !matches!(letters[n - 1], b'w' | b'x' | b'y')
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vectors;

    #[test]
    fn stems_are_those_of_nltk() {
        for file in [
            vectors::ours("stems.jsonl"),
            vectors::shared("porter_nltk.jsonl"),
        ] {
            for case in file {
                let word = case["word"].as_str().unwrap();
                assert_eq!(stem(word), case["stem"].as_str().unwrap(), "{word}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_stem(word in "\\PC{0,8}(ed|ing|eed|ies|y|alli|ll|e|s|ion)?") {
            stem_token(&word);
        }

        #[test]
        fn a_stem_is_never_empty_and_a_letter_is_judged_alike_both_ways(word in "[a-z0-9]{1,12}|[aeysinglt]{1,10}") {
            prop_assert!(!stem(&word).is_empty());
            let flags: Vec<bool> = consonants(&word).collect();
            let single: Vec<bool> = (0..word.len()).map(|at| is_consonant(word.as_bytes(), at)).collect();
            prop_assert_eq!(flags, single);
        }
    }
}
