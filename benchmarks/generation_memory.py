"""Measure the memory of batched generation: how large a batch fits, and whether later calls are as fast as the first.

    python benchmarks/generation_memory.py            # Llama-2-7B's shape, random weights, on a GPU
    python benchmarks/generation_memory.py --tiny     # a rehearsal with a tiny model, on any machine

Writes benchmarks/results/generation_memory.json (not with --tiny). Prompts have 560 to 700 tokens; end-of-turn tokens
are ignored, so that every answer has the same length. `bound_gb` is weights + 1.3 times the keys and values of the
largest batch + 4 GB: `peak_gb` (allocated) should stay below it. The rows named "not estimated" switch the estimate
off, so that memory does run out: the batch that goes on should be at least half the largest that fits.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import LLAMA_2_7B, random_llama, sync

from pocketguide.core.files import write_json
from pocketguide.core.runs import git_commit, versions
from pocketguide.engine import generate
from pocketguide.engine.models import load_tokenizer
from pocketguide.engine.testing import make_tiny_base

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
CUDA = torch.cuda.is_available()


def prompts_of(count, vocab):
    "Return `count` prompts of 560 to 700 random token ids, drawn by a seed; all begin with the same 200."
    draw = random.Random(0)
    shared = [draw.randrange(3, vocab) for _ in range(200)]
    return [shared + [draw.randrange(3, vocab) for _ in range(draw.randint(360, 500))] for _ in range(count)]


def call(model, tokenizer, prompts, tokens, batch, name):
    "Answer `prompts` once; return what it took."
    engine = generate.Engine(model, tokenizer, batch, tokens, stop_on_json=False, stop_on_loop=False)
    engine.ends, sizes, make = set(), [], generate._Batch.__init__

    def noted(self, *args):
        make(self, *args)
        sizes.append((len(self.active), self.capacity))

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with mock.patch.object(generate._Batch, "__init__", noted):
        done = engine.generate(prompts)
    sync()
    seconds = time.perf_counter() - began
    assert all(len(c.token_ids) == tokens for c in done)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows, capacity = sizes[-1]
    cache = rows * (generate.row_bytes(model, capacity) - generate.row_bytes(model, 0))
    row = {
        "call": name,
        "asked": batch,
        "prompts": len(prompts),
        "new_tokens": tokens,
        "batches": [n for n, _ in sizes],
        "capacity": capacity,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(len(prompts) * tokens / seconds, 1),
        "weights_gb": round(weights / 1e9, 2),
        "cache_gb": round(cache / 1e9, 2),
        "bound_gb": round((weights + 1.3 * cache) / 1e9 + 4, 2),
    }
    if CUDA:
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        row["reserved_after_gb"] = round(torch.cuda.memory_reserved() / 1e9, 2)
    print(json.dumps(row), flush=True)
    return row


def measure(tiny):
    "Return the rows of all calls, in one process."
    shape = TINY if tiny else LLAMA_2_7B
    model = random_llama("cuda" if CUDA else "cpu", **shape, eos_token_id=2, pad_token_id=2).eval()
    with tempfile.TemporaryDirectory() as tmp:
        tokenizer, rows = load_tokenizer(make_tiny_base(tmp)), []  # nothing is decoded: any tokenizer does
    prompts = prompts_of(400, model.config.vocab_size)
    short, long = (8, 16) if tiny else (256, 512)

    def add(name, count, tokens, batch):
        rows.append(call(model, tokenizer, prompts[:count], tokens, batch, name))

    add("warm up", 8, 8, 8)
    for tokens in (short, long):
        for k in range(3):
            add(f"call {k + 1} of 3", 200, tokens, 128)
    for batch in (8, 40, 64):
        add("fits", batch, short, batch)
    add("too large, estimated", 200, short, 200)
    add("auto", 200, long, "auto")
    with mock.patch.object(generate, "fitting_rows", lambda *args: 10**6):
        add("too large, not estimated", 400, short, 400)
    add("after memory ran out", 200, short, 128)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with a tiny model and write nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/generation_memory.json")
    args = parser.parse_args()
    if not (CUDA or args.tiny):
        sys.exit("error: no CUDA device was found (generation_memory.py): run it on a GPU, or rehearse with --tiny")
    rows = measure(args.tiny)
    if not args.tiny:
        device = torch.cuda.get_device_name()
        write_json(args.out, {"device": device, "commit": git_commit(ROOT), "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
