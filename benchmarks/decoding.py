"""Compare three ways of decoding with one run: free, held to the contract, and grounded in an entry, in one process.

    python benchmarks/decoding.py --run_dir runs/train/<RUN_ID> [--gguf FILE] [--answers 12] [--batch_size 1]

Writes benchmarks/results/decoding_<cuda|cpu>.json: tokens, passes of the model and seconds per answer of each way, for
PyTorch and, with --gguf, llama.cpp. Payload type and entry are those of the labels, so that all three ways answer the
same question; recognising them costs the same in each.
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pocketguide.contract.grammar import Grammar
from pocketguide.contract.task import load_task
from pocketguide.core.config import load_config
from pocketguide.core.files import read_jsonl, write_json
from pocketguide.core.runs import git_commit, open_run, versions
from pocketguide.engine.adapters import merge_adapter
from pocketguide.engine.generate import Engine, end_tokens
from pocketguide.engine.models import load_model, load_tokenizer
from pocketguide.engine.prompts import build_prompts
from pocketguide.travel.contract import PAYLOAD_TYPES, contract_schema
from pocketguide.travel.grounding import answer_grammar, entry_for, guide_library
from pocketguide.travel.prompts import Classification

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SUITE = ROOT / "eval/validation/natural200_v1.jsonl"


def chosen_questions(answers: int, seed: int = 0) -> list[tuple[dict, dict]]:
    "Return as many questions of each payload type, with their entry, drawn by a seed."
    labels = {row["id"]: row for row in read_jsonl(ROOT / "eval/labels/natural200_v1.jsonl")}
    library, found = guide_library(), []
    for payload_type in PAYLOAD_TYPES:
        rows = [row for row in read_jsonl(SUITE) if row["payload_type"] == payload_type]
        for row in random.Random(seed).sample(rows, answers // len(PAYLOAD_TYPES)):
            found.append((row, entry_for(row["prompt"], payload_type, labels[row["id"]]["entries"], library)))
    return found


def count_passes(engine) -> list[int]:
    "Count the model's passes in the returned list of one number."
    count = [0]
    if hasattr(engine, "model"):
        engine.model.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    else:
        read = engine._logits

        def logits(tokens):
            count[0] += 1
            return read(tokens)

        engine._logits = logits
    return count


def measure(engine, prompts: list[list[int]], grammars: list, batch_size: int, count: list[int]) -> dict:
    "Return what the answers took: the mean of tokens and passes, median and mean of seconds per answer."
    tokens, passes, seconds = [], [], []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        count[0], began = 0, time.perf_counter()
        done = engine.generate(prompts[some], grammar=grammars[some])
        seconds.append((time.perf_counter() - began) / len(done))
        passes.append(count[0] / len(done))
        tokens += [c.num_tokens for c in done]
    mean = statistics.mean
    return {
        "answers": len(prompts),
        "tokens": round(mean(tokens), 1),
        "passes": None if DEVICE == "cuda" else round(mean(passes), 1),  # a replayed graph calls no hook
        "seconds": round(mean(seconds), 3),
        "seconds_median": round(statistics.median(seconds), 3),
    }


def compare(engine, tokenizer, vocab_size: int, ends: set[int], run, a) -> dict:
    "Return the measures of the three ways with one engine, each after a first answer that warms it up."
    task, options = load_task(), load_task().prompt_options(load_config(run.path / "config.yaml"))
    asked = chosen_questions(a.answers)
    rows = [row for row, _ in asked]
    topics = [Classification(row["payload_type"], topic=e.get("id", "").replace("-", " ")) for row, e in asked]
    prompts = [p.token_ids for p in build_prompts(task, engine, rows, options, topics)]
    library, began = guide_library(), time.perf_counter()
    texts = [answer_grammar(row["prompt"], row["payload_type"], entry, library) for row, entry in asked]
    written = time.perf_counter() - began
    own = [Grammar.from_lark(tokenizer, text, vocab_size, ends) for text in texts]
    compiled = time.perf_counter() - began - written
    contracts = {p: Grammar(tokenizer, contract_schema(p), vocab_size, ends) for p in PAYLOAD_TYPES}
    ways = {
        "free": [None] * len(rows),
        "contract": [contracts[row["payload_type"]] for row in rows],
        "grounded": own,
    }
    count = count_passes(engine)
    found = {}
    for name, grammars in ways.items():
        engine.generate(prompts[:1], grammar=grammars[:1])
        found[name] = measure(engine, prompts, grammars, a.batch_size, count)
        print(name, found[name], flush=True)
    found["grammar_ms"] = {
        "write": round(1000 * written / len(rows), 1),
        "compile": round(1000 * compiled / len(rows), 1),
    }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--gguf")
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    a = parser.parse_args()
    run = open_run(a.run_dir)
    cfg = load_config(run.path / "config.yaml")
    tokenizer = load_tokenizer(cfg.base_model_id)
    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    model = merge_adapter(load_model(cfg.base_model_id, dtype, DEVICE, "none"), run.adapter)
    engine = Engine(model, tokenizer, a.batch_size, 2000)
    found = {"torch": compare(engine, tokenizer, model.config.vocab_size, end_tokens(model, tokenizer), run, a)}
    if a.gguf:
        from pocketguide.engine.llama import LlamaCpp

        llama = LlamaCpp(Path(a.gguf), 2000)
        llama.open(4096)
        ends = {llama.tokenizer.eos_token_id}
        found["llama_cpp"] = compare(llama, llama.tokenizer, len(llama.tokenizer), ends, run, a)
    head = {
        "commit": git_commit(),
        "versions": versions(),
        "run": run.run_id,
        "dtype": dtype,
        "batch_size": a.batch_size,
    }
    write_json(ROOT / f"benchmarks/results/decoding_{DEVICE}.json", head | found)


if __name__ == "__main__":
    main()
