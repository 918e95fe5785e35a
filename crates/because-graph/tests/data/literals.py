"""Writes literals.jsonl: Python literals, and what ast.literal_eval makes of them (no value: it refuses them).

    python3 literals.py > literals.jsonl
"""
import ast
import json
import random
import warnings

warnings.simplefilter("ignore")
draw = random.Random(5)


def text():
    letters = ["a", "b", " ", "'", '"', "\\", "\n", "\t", "\0", "é", "ß", "日", "😀", "{", "<br />", "&amp;", "\x7f", "\x85"]
    return "".join(draw.choice(letters) for _ in range(draw.randint(0, 8)))


def value(depth=0):
    pick = draw.randint(0, 9 if depth < 4 else 6)
    if pick <= 2:
        return text()
    if pick == 3:
        return draw.choice([0, 1, -1, 2**31, -(2**63), 2**64 - 1, draw.randint(-(10**9), 10**9)])
    if pick == 4:
        return draw.choice([0.5, -2.25, 1e-9, 1e22, 12.99, float(draw.randint(-1000, 1000)) / 8])
    if pick == 5:
        return draw.choice([True, False, None])
    if pick == 6:
        return text()
    many = draw.randint(0, 4)
    if pick == 7:
        return [value(depth + 1) for _ in range(many)]
    if pick == 8:
        return tuple(value(depth + 1) for _ in range(many))
    return {text() if draw.random() < 0.9 else draw.randint(0, 99): value(depth + 1) for _ in range(many)}


def written_text(content):
    """A text as Python 2 or 3, or a person, might write it."""
    if draw.random() < 0.4:
        return repr(content)
    quote = draw.choice("'\"")
    out = draw.choice(["", "u", "U"]) + quote
    for letter in content:
        code = ord(letter)
        ways = []
        if letter not in "\\\n\r\0" and letter != quote:
            ways.append(letter)
        if letter in "\\'\"":
            ways.append("\\" + letter)
        if letter == "\n":
            ways.append("\\n")
        if code < 256:
            ways += ["\\x%02x" % code, "\\%03o" % code]
        if code < 65536:
            ways.append("\\u%04X" % code)
        ways.append("\\U%08x" % code)
        out += draw.choice(ways)
    return out + quote


def blank():
    return draw.choice(["", "", " ", "  ", "\t"])


def written(thing):
    if isinstance(thing, str):
        return written_text(thing)
    if isinstance(thing, (list, tuple)):
        inner = (blank() + "," + blank()).join(written(one) for one in thing)
        end = draw.choice(["", ","]) if thing else ""
        if isinstance(thing, list):
            return "[" + inner + end + "]"
        return "(" + inner + ("," if len(thing) == 1 else end) + ")"
    if isinstance(thing, dict):
        inner = ", ".join(written(key) + blank() + ":" + blank() + written(one) for key, one in thing.items())
        return "{" + blank() + inner + (draw.choice(["", ", "]) if thing else "") + "}"
    return repr(thing)


def as_json(thing):
    if isinstance(thing, dict):
        return {str(key): as_json(one) for key, one in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [as_json(one) for one in thing]
    if isinstance(thing, set):
        return sorted(as_json(one) for one in thing)
    if isinstance(thing, bytes):
        return thing.decode()
    return thing


def row(literal):
    try:
        print(json.dumps({"literal": literal, "value": as_json(ast.literal_eval(literal))}))
    except (ValueError, SyntaxError, TypeError):
        print(json.dumps({"literal": literal}))


for _ in range(300):
    row(written(value()))
for literal in [
    "1_000", "1_000.5", "0x_ff", "0xFF", "0o17", "0b101", "1__0", "_1", "1_", "012", "00", "0", "-0", "+5", "- 5", "--5", "1.", ".5",
    "1.e3", "1e3", "1E+3", "1e-3", "1e", "1e+", ".", "0x", "0b2", "0o8", "-.5", "1._5", "1_.5", "1e1_0", "0xg", "1 2", "(1)", "(1,)",
    "()", "( )", "[]", "[ ]", "{}", "{ }", "[,]", "(,)", "{,}", "[1,,2]", "{1}", "{1, 2}", "{1,}", "{'a'}", "{'a': 1, 'b'}", "{'a', 'b': 1}",
    "{'a': 1 'b': 2}", "{'a' 1}", "[1 2]", "'a' 'b'", "'a'\"b\"", "'a' u'b'", "['a' 'b', 'c']", "r'\\n'", "R'\\''", "b'abc'", "b'\\u00e9'",
    "rb'\\x41'", "br'\\x41'", "uu'a'", "f'a'", "'''a'''", "'''a'b'''", "''''a'''", "''", "\"\"", "'\\d'", "'\\8'", "'\\1'", "'\\777'",
    "'\\18'", "'\\x4'", "'\\xzz'", "'\\u12'", "'\\U00110000'", "'\\U0010ffff'", "'a", "a'", "'a\\", "true", "null", "None", "True ", " True",
    "[True, False, None]", "Nonee", "print('x')", "1+1", "'a'+'b'", "'%s' % 1", "[1][0]", "{}.x", "lambda: 1", "[x for x in 'a']", "*[1]",
    "{**{}}", "a", "@", "é", "{'a': {'b': {'c': [(1, 2), {'d': None}]}}}", "{1: 2, 1: 3}", "{'a': 1, 'a': 2}", "{None: 1}", "{True: 1}",
    "{[1]: 2}", "{{}: 1}", "12abc", "1.2.3", "1e5.5", "0x1.8", "{'a':1}}", "[[1]", "((1))", "((1),)", "(1 , )", "[\t1\t]",
]:
    row(literal)
