"""Writes the expected values beside this file. The texts are invented here.

python3 -m venv v && v/bin/pip install sacrebleu==2.5.1 rouge-score==0.1.2 nltk==3.10.4 numpy==2.4.6
v/bin/python make_cases.py      (Python 3.11)
"""
import json
from collections import Counter
from pathlib import Path

from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenize
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

PAIRS = [
    ("You may like this lake house because you often pick quiet places near water.", "You would like the lake house for its quiet rooms near the water."),
    ("same words, same order", "same words, same order"),
    ("", "nothing was said"),
    ("nothing was asked", ""),
    ("", ""),
    (" \t\n", "only space"),
    ("one", "one"),
    ("two words", "words two"),
    ("the the the the", "the cat saw the dog"),
    ("They pay 3.50, 4,000 or 7-8 dollars.", "They pay 3,50 or 7-8 dollars, not 4.000."),
    ("R&amp;D &lt;b&gt;bold&lt;/b&gt; &quot;quoted&quot; &nbsp;", "R&D <b>bold</b> \"quoted\" nbsp"),
    ("a co-\noperative <skipped>spot", "a cooperative spot"),
    ("It's well-made, isn't it... (really)?!", "It is well-made; is it not? [really]"),
    ("first line\nsecond line about tea\n\nthird", "second line about coffee\nfirst line\nfourth"),
    ("a b c a b\na b a b", "a b\nb a\na b c"),
    ("tabs\there\x1cand\x1fthere\u00a0or\u2003thin", "tabs here and there or thin"),
    ("caf\u00e9 cr\u00e8me, na\u00efve \u0130zmir 300\u212a", "cafe creme, naive izmir 300k"),
    ("\u5bff\u53f8\u304c\u597d\u304d", "\u5bff\u53f8\u306f\u597d\u304d\u3067\u3059"),
    ("\u0442\u0438\u0445\u043e\u0435 \u043c\u0435\u0441\u0442\u043e", "\u0442\u0438\u0445\u043e\u0435 \u0438 \u0443\u044e\u0442\u043d\u043e\u0435 \u043c\u0435\u0441\u0442\u043e"),
    ("great \U0001f35c\U0001f35c soup \U0001f469\u200d\U0001f373", "great \U0001f35c soup \U0001f469\u200d\U0001f373"),
    ("hikers enjoying trails were hiked and hiking happily", "a hiker enjoys the trail and hikes happy"),
    ("generous relational conditions conflated the flies", "generosity relates a condition, conflating a fly"),
    ("word " * 70 + "end", "word " * 66 + "other end"),
    ("x" * 40, "x" * 37 + "y"),
    ("  leading and trailing  \n", "leading and trailing"),
    ("A.B.C, d.e,f 1.a a.1 1-a a-1 --", "A. B. C, d.e, f 1. a a. 1 1 -a a- 1 - -"),
    ("Because the user enjoys long novels with slow plots and rich detail, this saga of three families should hold them for weeks; its careful pace and the many maps reward a patient reader.", "The user would enjoy this saga because it offers a slow, detailed plot over many families, and its maps and patient pace suit a reader of long novels."),
    ("Fans of loud rock bars will like the stage, the cheap beer and the late hours here.", "The user would enjoy the bar for cheap beer, live rock on a small stage and its late hours."),
]
WORDS = """caresses ponies ties dies flies spied died agreed feed bled motoring sing conflated troubled sized hopping tanned falling hissing fizzed
failing filing happy sky skies enjoy spy try by rational relational conditional valenci hesitanci digitizer conformabli radically differently vilely
analogously vietnamization predication operator feudalism decisiveness hopefulness callousness formality sensitivity sensibility hopefully geology
theology logi triplicate formative formalize electricity electrical hopeful goodness revival allowance inference airliner gyroscopic adjustable defensible
irritant replacement adjustment dependent adoption homologou communism activate angularity homologous effective bowdlerize probate rate cease controlling
roll dying lying tying news innings outing cannings howe proceed exceeded succeed generous this his bus yes yyy syzygy toying 1990s 3rd b2b ion action
ess ness ally alli rallied generally essentially finally ing ed eed need seed indeed aied ied being using owed snowing boxing oiled eating aed ated""".split()


def measured(pairs):
    predictions = [p for p, _ in pairs]
    references = [r for _, r in pairs]
    expected = {"bleu": {}, "rouge": {}, "rouge_stemmed": {}}
    for tok in ("13a", "none"):
        expected["bleu"][tok] = {
            f"bleu{n}": BLEU(tokenize=tok, max_ngram_order=n).corpus_score(predictions, [references]).score for n in (1, 2, 3, 4)
        }
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for key, stem in (("rouge", False), ("rouge_stemmed", True)):
        scorer = rouge_scorer.RougeScorer(names, use_stemmer=stem)
        rows = [scorer.score(target=r, prediction=p) for p, r in pairs]
        for name in names:
            expected[key][name] = {
                field: sum(getattr(row[name], field) for row in rows) / len(rows) for field in ("precision", "recall", "fmeasure")
            }
    expected["chrf"] = CHRF().corpus_score(predictions, [references]).score
    split = [p.split() for p in predictions]
    for n in (1, 2):
        grams = Counter(tuple(t[i : i + n]) for t in split for i in range(len(t) - n + 1))
        expected.setdefault("distinct", {})[f"distinct{n}"] = len(grams) / sum(grams.values()) if grams else 0.0
    expected["unique_sentence_ratio"] = len({tuple(t) for t in split}) / len(pairs)
    expected["mean_tokens"] = {
        "prediction": sum(map(len, split)) / len(pairs),
        "reference": sum(len(r.split()) for r in references) / len(pairs),
    }
    return expected


def short(value):
    """Twelve digits, which is more than the tests compare."""
    if isinstance(value, dict):
        return {key: short(inner) for key, inner in value.items()}
    return float(f"{value:.12g}")


def write(name, rows):
    with open(Path(__file__).with_name(name), "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    stemmer, cut = PorterStemmer(), Tokenizer13a()
    pairs = lambda chosen: [{"prediction": p, "reference": r} for p, r in chosen]
    corpora = [[pair] for pair in PAIRS] + [PAIRS, PAIRS[:4], PAIRS[-3:] + PAIRS[-1:]]
    write("cases.jsonl", ({"pairs": pairs(c), "expected": short(measured(c))} for c in corpora))
    write("stems.jsonl", ({"word": w, "stem": stemmer.stem(w)} for w in WORDS))
    texts = sorted({text for pair in PAIRS for text in pair if len(text) < 200})
    write("tokens.jsonl", ({"text": t, "tokens": {
        "13a": cut(t.rstrip()).split(), "none": t.split(),
        "rouge": tokenize.tokenize(t, None), "rouge_stem": tokenize.tokenize(t, stemmer),
    }} for t in texts))
