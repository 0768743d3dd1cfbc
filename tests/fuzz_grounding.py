"""Walk at random through the grammars of answers: no dead end, every answer valid, nothing said twice.

    python tests/fuzz_grounding.py --walks 10000     # of each payload type, over the whole library

Exits 1 at the first answer that breaks a rule, and prints it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pocketguide.contract.grammar import Grammar
from pocketguide.core.files import read_jsonl
from pocketguide.engine.models import load_tokenizer
from pocketguide.engine.testing import make_tiny_base, random_answer
from pocketguide.travel.contract import PAYLOAD_TYPES, check
from pocketguide.travel.grounding import (
    answer_grammar,
    as_checklist,
    guide_library,
    not_covered_entry,
)
from pocketguide.travel.library import entries_of

OTHER_KEYS = ("time_block", "location", "mode", "type", "id", "priority", "name", "payload_type", "timezone")
WALKS_OF_A_GRAMMAR = 10


def all_entries(library: dict, payload_type: str) -> list[dict]:
    "Return every entry that can answer a question of a payload type."
    entries = entries_of(library, payload_type) or [{}]
    if payload_type == "checklist":
        entries = entries + [as_checklist(e) for e in library["situations"] if not e["id"].startswith("other-")]
    if payload_type != "itinerary":
        entries = entries + [not_covered_entry(payload_type, s, library) for s in ("health", "danger", "law")]
    return entries


def units(value: object, key: str = "") -> Iterator[str]:
    "Yield the texts of an answer of which none may come twice."
    if isinstance(value, dict):
        for k, inner in value.items():
            if k not in ("edges", "requires"):
                yield from units(inner, k)
    elif isinstance(value, list):
        for inner in value:
            yield from units(inner, key)
    elif isinstance(value, str) and key not in OTHER_KEYS:
        yield value


def fault(text: str, payload_type: str) -> str:
    "Return what is wrong with an answer; empty if nothing is."
    verdict = check(text, {"payload_type": payload_type}, "eos")
    if not verdict.schema_valid:
        return f"not valid: {verdict.first}"
    said = list(units(verdict.parsed))
    return next((f"said twice: {u!r}" for u in said if said.count(u) > 1), "")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--walks", type=int, default=60, help="of each payload type")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    rng, library = random.Random(a.seed), guide_library()
    tokenizer = load_tokenizer(make_tiny_base(Path(tempfile.mkdtemp()) / "tiny"))
    questions = [row["prompt"] for row in read_jsonl(ROOT / "eval/validation/natural200_v1.jsonl")]
    questions += ["what do I need", "a trip to Erewhonia in winter with a baby and a wheelchair, halal, 14 days"]
    for payload_type in PAYLOAD_TYPES:
        entries, began = all_entries(library, payload_type), time.perf_counter()
        rng.shuffle(entries)
        for n in range(0, a.walks, WALKS_OF_A_GRAMMAR):
            entry = entries[n // WALKS_OF_A_GRAMMAR % len(entries)]
            question = rng.choice(questions)
            grammar = Grammar.from_lark(tokenizer, answer_grammar(question, payload_type, entry, library))
            for _ in range(WALKS_OF_A_GRAMMAR):
                text = random_answer(grammar, tokenizer, rng)
                if wrong := fault(text, payload_type):
                    print(f"{payload_type} {entry.get('id')} {question!r}\n{wrong}\n{text}")
                    return 1
        print(f"{payload_type}: {a.walks} walks, {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
