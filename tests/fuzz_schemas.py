"""Put random JSON Schemas through prompt, grammar and judging, and random texts through `check`: nothing may raise.

    python tests/fuzz_schemas.py [--schemas 200] [--texts 2000] [--seed 0]

A schema may be refused in one line. What is written under a grammar that enforces all of it must fit it. The slowest of
both kinds are printed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pocketguide.contract.grammar import Grammar, lint
from pocketguide.contract.schema import schema_prompt
from pocketguide.contract.task import SchemaTask
from pocketguide.core.errors import UserError
from pocketguide.core.files import dump_row
from pocketguide.engine.models import load_tokenizer
from pocketguide.engine.testing import make_tiny_base
from pocketguide.travel.contract import check

NAMES = (
    "a",
    "b",
    "traveller's name",
    'say "x"',
    "naïve",
    "",
    "x,y",
    "$ref",
    "type",
    "a/b",
    "~",
    "k\n",
    "ключ",
    "\u2028",
)
TYPES = ("null", "boolean", "string", "number", "integer", "array", "object")
PATTERNS = (
    "^a+$",
    "x",
    r"^\p{L}+$",
    r"\d{3}",
    "^(?!n)",
    r"a\b",
    "(a|b)*",
    "^[^]$",
    "(?i)a",
    "^$",
    r"\u{1F600}",
    "[a-",
    "^a|b$",
)
FORMATS = ("date", "email", "uri", "date-time", "regex", "color", "ipv4")
NUMBERS = (0, 1, -1, 2, 3, 10, 0.5, 0.01, 1e-9, 1e30, -1e300, 2**53, 2**64, 0.1, 7)
DRAFTS = [f"http://json-schema.org/draft-0{n}/schema#" for n in (3, 4, 6, 7)]
DRAFTS += [f"https://json-schema.org/draft/{n}/schema" for n in ("2019-09", "2020-12")] + ["https://example.org/own"]
REFERENCES = ("#", "#/$defs/a", "#/$defs/b", "#/$defs/a", "#/$defs/b")


def random_value(rng: random.Random, depth: int = 0):
    "Return a random JSON value."
    scalar = lambda: rng.choice([None, True, False, rng.choice(NUMBERS), rng.choice(NAMES), "text" * rng.randrange(3)])
    if depth > 3 or rng.random() < 0.5:
        return scalar()
    if rng.random() < 0.5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def keyword_makers(rng: random.Random, sub) -> dict:
    "Return a function for each keyword that makes a random value of it; `sub` makes a subschema."
    some = lambda make, n=4: [make() for _ in range(rng.randrange(1, n))]
    named = lambda make: {rng.choice(NAMES): make() for _ in range(rng.randrange(4))}
    count = lambda: rng.choice((0, 1, 2, 3, 5, 400, 10**9))
    names = lambda: rng.sample(NAMES, rng.randrange(3))
    number = lambda: rng.choice(NUMBERS)
    made = dict.fromkeys("items additionalProperties not if then else contains propertyNames".split(), sub)
    made |= dict.fromkeys("additionalItems unevaluatedProperties unevaluatedItems contentSchema".split(), sub)
    made |= dict.fromkeys("anyOf oneOf allOf prefixItems".split(), lambda: some(sub))
    made |= dict.fromkeys("properties $defs definitions dependentSchemas".split(), lambda: named(sub))
    made |= dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum".split(), number)
    made |= dict.fromkeys(
        "minItems maxItems minLength maxLength minProperties maxProperties minContains".split(), count
    )
    made |= dict.fromkeys(("default", "const", "x-note", "_own", "example"), lambda: random_value(rng))
    return made | {
        "type": lambda: rng.choice([rng.choice(TYPES), rng.sample(TYPES, 2)]),
        "enum": lambda: some(lambda: random_value(rng), 5),
        "required": names,
        "dependentRequired": lambda: named(names),
        "dependencies": lambda: named(rng.choice([names, sub])),
        "patternProperties": lambda: {rng.choice(PATTERNS): sub() for _ in range(rng.randrange(3))},
        "pattern": lambda: rng.choice(PATTERNS),
        "format": lambda: rng.choice(FORMATS),
        "multipleOf": lambda: abs(number()) or 1,
        "uniqueItems": lambda: rng.random() < 0.5,
        "maxContains": count,
        "nullable": lambda: True,
        "$ref": lambda: rng.choice(REFERENCES),
        "$recursiveRef": lambda: "#",
        "$dynamicRef": lambda: "#",
        "$id": lambda: "https://example.org/x",
        "title": lambda: rng.choice(NAMES),
    }


def random_schema(rng: random.Random, depth: int = 0):
    "Return a random JSON Schema, now and then with a value that its keyword does not take."
    if depth > 3 or rng.random() < 0.06 * (depth > 0):
        return rng.choice([True, {}, {}, {"type": rng.choice(TYPES)}, False])
    made = keyword_makers(rng, lambda: random_schema(rng, depth + 1))
    often = ["type", "type", "properties", "required", "items", "enum", "anyOf"]
    schema = {key: made[key]() for key in rng.sample([*made, *often], rng.randrange(1, 6))}
    if rng.random() < 0.01:
        schema[rng.choice([*made])] = random_value(rng)
    if not depth:
        schema["$defs"] = {name: random_schema(rng, 2) for name in "ab"}
        schema |= {"$schema": rng.choice(DRAFTS)} if rng.random() < 0.4 else {}
        schema |= {"$ref": rng.choice(("#/nowhere", "other.json"))} if rng.random() < 0.02 else {}
    return schema


def walk(grammar: Grammar, tokenizer, rng: random.Random, limit: int = 250) -> str | None:
    "Return a random answer that tends to its end, or None if it has none before `limit`."
    matcher, out = grammar.matchers(1)[0], []
    closers = {t for c in '"]}' for t in tokenizer(c)["input_ids"]} | {tokenizer.eos_token_id}
    while len(out) < limit:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        may = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        assert may, f"dead end after {tokenizer.decode(out)!r}"
        closing = [t for t in may if t in closers and (len(out) > 60 or rng.random() < 0.5)]
        token = rng.choice(closing or may)
        if token in grammar.ends:
            return tokenizer.decode(out)
        assert matcher.consume_token(token), matcher.get_error()
        out.append(token)
    return None


def try_schema(schema, tokenizer, rng: random.Random) -> str:
    "Put a schema through everything; return what became of it."
    try:
        task = SchemaTask(schema)
    except UserError:
        return "refused"
    assert schema_prompt(schema)
    for text in (json.dumps(random_value(rng)), random_text(rng), "{}", ""):
        dump_row(task.sample_row({"id": "x", "prompt": "y"}, text, "eos", 1, 1.0))
    try:
        lint(schema)
        grammar = Grammar(tokenizer, schema, best_effort=True)
    except UserError as e:
        return f"no grammar: {e.what[:60]}"
    for _ in range(2):
        text = walk(grammar, tokenizer, rng)
        if text is not None and not grammar.unenforced:
            verdict = task.judge(text)
            assert verdict.schema_valid, (text, verdict.first)
    return "best effort" if grammar.unenforced else "plain promise"


def random_text(rng: random.Random) -> str:
    "Return a random text: JSON, torn or altered JSON, deep nesting, numbers and letters at their limits."
    text = json.dumps(random_value(rng), ensure_ascii=rng.random() < 0.5)
    odd = (
        "\\ud800",
        "\x00",
        "NaN",
        "1e999",
        '"a":1,"a":2',
        "\ud800",
        "9" * 5000,
        "\ufeff",
        "```json\n",
        "{",
        "]",
        '\\"',
    )
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice("[{") * rng.choice(
            (10, 64, 65, 3000, 20_000 if rng.random() < 0.9 else 100_000)
        ) + rng.choice(("", "]" * 64))
    if kind == 1:
        return text[: rng.randrange(len(text) + 1)]
    if kind == 2:
        at = rng.randrange(len(text) + 1)
        return text[:at] + rng.choice(odd) + text[at:]
    if kind == 3:
        return "".join(rng.choice(odd + ("a", " ", ",", ":", "\n")) for _ in range(rng.randrange(12)))
    return (
        rng.choice(("Sure! ", "", "\n")) + text + rng.choice(("", " x", "```"))
        if kind == 4
        else text * rng.choice((1, 2))
    )


def main() -> int:
    "Run both and print what became of them, and the slowest."
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--schemas", type=int, default=200)
    p.add_argument("--texts", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    found, slowest = {}, {"schema": (0.0, -1), "text": (0.0, "")}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(make_tiny_base(Path(folder) / "tiny"))
        for seed in range(a.seed, a.seed + a.schemas):
            rng, started = random.Random(seed), time.perf_counter()
            schema = random_schema(rng)
            try:
                result = try_schema(schema, tokenizer, rng)
            except Exception:
                print(f"seed {seed}: {json.dumps(schema)[:2000]}", file=sys.stderr)
                raise
            found[result] = found.get(result, 0) + 1
            slowest["schema"] = max(slowest["schema"], (round(time.perf_counter() - started, 2), seed))
    rng = random.Random(a.seed)
    for _ in range(a.texts):
        text, started = random_text(rng), time.perf_counter()
        check(text)
        slowest["text"] = max(slowest["text"], (round(time.perf_counter() - started, 2), text[:60]))
    print(found, f"{a.texts} texts, slowest (seconds):", slowest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
