"""Count what becomes of many JSON Schemas: shown in a prompt, judged, enforced while decoding.

    python benchmarks/schemas.py FOLDER [--walks 3] [--seed 0] [--out FILE.json]

FOLDER holds `*.json` (one schema each) or `*.jsonl` (rows with `schema`, and `id` if they have one). With --walks that
many random answers are written under each grammar; those under the plain promise must fit the schema, by this project's
check and by jsonschema's own validator of the draft (with decimals compared exactly, and if it can read the patterns).
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import jsonschema
from jsonschema_specifications import REGISTRY

from pocketguide.contract.grammar import Grammar, import_llguidance, make_plan
from pocketguide.contract.schema import check_schema
from pocketguide.contract.task import SchemaTask
from pocketguide.core.errors import UserError
from pocketguide.core.files import write_json
from pocketguide.engine.models import load_tokenizer
from pocketguide.engine.testing import make_tiny_base

PROBES = ("{}", "[]", '{"name":1,"items":[{"a":null}]}', "null", "3.5", '"text"', "{", "")


def schemas(folder: Path):
    "Yield (name, schema) of everything in a folder."
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            yield path.stem, json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            yield from ((f"{path.stem}/{row.get('id', i)}", row["schema"]) for i, row in enumerate(rows))


def compiles_alone(schema: dict) -> bool:
    "Return True if llguidance itself takes the schema as it is."
    matcher = import_llguidance().LLMatcher
    return not matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema))).strip()


def walk(grammar: Grammar, tokenizer, rng: random.Random, wander: int, limit: int = 3000) -> str | None:
    "Return a random answer that tends to its end after `wander` tokens; None if it has none before `limit`."
    import numpy as np

    matcher, out = grammar.matchers(1)[0], []
    closers = {t for c in '"]}' for t in tokenizer(c)["input_ids"]} | {tokenizer.eos_token_id}
    while len(out) < limit:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        may = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        close = len(out) >= wander or rng.random() < 0.5
        token = rng.choice([t for t in may if close and t in closers] or may)
        if token in grammar.ends:
            return tokenizer.decode(out)
        matcher.consume_token(token)
        out.append(token)
    return None


def try_walks(task: SchemaTask, grammar: Grammar, tokenizer, rng: random.Random, walks: int) -> Counter:
    "Return how many random answers fit, by both validators, and how many came to no end."
    cls = jsonschema.validators.validator_for(task.schema, jsonschema.Draft202012Validator)
    decimals = {"multipleOf": task.validator.VALIDATORS["multipleOf"]} if "multipleOf" in cls.VALIDATORS else {}
    stock, counts = jsonschema.validators.extend(cls, decimals)(task.schema, registry=REGISTRY), Counter()
    promise = "best effort" if grammar.unenforced else "plain"
    for _ in range(walks):
        text = walk(grammar, tokenizer, rng, rng.choice((0, 30, 150)))
        if text is None:
            counts[f"walks, {promise}: no end before the limit"] += 1
            continue
        verdict = check_schema(text, task.validator)
        try:
            fits = verdict.schema_valid and stock.is_valid(verdict.parsed)
        except re.error:
            fits = verdict.schema_valid
        counts[f"walks, {promise}: {'valid' if fits else 'NOT VALID'}"] += 1
    return counts


def try_schema(schema: dict, tokenizer, rng: random.Random, walks: int) -> tuple[Counter, dict]:
    "Return what became of one schema, and the seconds that its parts took."
    counts, started = Counter({"schemas": 1}), time.perf_counter()
    counts["llguidance alone compiles it"] += compiles_alone(schema)
    task = SchemaTask(schema)
    task.messages({"prompt": "x"})
    for text in PROBES:
        task.judge(text)
    judged = time.perf_counter()
    counts["shown and judged"] += 1
    counts["plain promise"] += not make_plan(schema).rejected
    grammar = Grammar(tokenizer, schema, best_effort=True)
    counts["best effort"] += 1
    seconds = {"prompt and judging": judged - started, "grammar": time.perf_counter() - judged}
    return counts + try_walks(task, grammar, tokenizer, rng, walks), seconds


def main() -> int:
    "Try every schema of a folder and print the counts. Exit 1 for an exception or an invalid walk."
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--walks", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    counts, slow, rng = Counter(), {}, random.Random(a.seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(make_tiny_base(Path(folder) / "tiny"))
        for name, schema in schemas(a.folder):
            try:
                found, seconds = try_schema(schema, tokenizer, rng, a.walks)
            except UserError as e:
                found, seconds = Counter({"schemas": 1, "refused in one line": 1}), {}
                print(f"{name}: {e}", file=sys.stderr)
            except Exception:
                found, seconds = Counter({"schemas": 1, "EXCEPTIONS": 1}), {}
                print(name, traceback.format_exc(limit=-4), file=sys.stderr)
            counts += found
            slow |= {f"{name}: {part}": round(s, 2) for part, s in seconds.items() if s > 1}
    result = {"counts": dict(counts), "slower than a second": slow}
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)
    return int(any(key == "EXCEPTIONS" or key == "walks, plain: NOT VALID" for key in counts))


if __name__ == "__main__":
    sys.exit(main())
