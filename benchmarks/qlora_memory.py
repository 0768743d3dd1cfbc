"""Measure what 4-bit base weights save in training: LoRA over bfloat16 against QLoRA over nf4, on Llama-2-7B's shape
with random weights, by this project's own training code.

    python benchmarks/qlora_memory.py            # on a GPU, about three minutes
    python benchmarks/qlora_memory.py --quick    # a rehearsal on a tiny shape, CPU included

Writes benchmarks/results/qlora_memory.json (qlora_memory_quick.json for the rehearsal) after every measured setting:
bytes of the loaded weights, peak memory and seconds of an optimiser step. A step is a forward and a backward pass over
sequences of 2,048 tokens, the last 512 of which are in the loss (a long prompt and its answer), and AdamW's update of
the adapter.
"""

import argparse
import gc
import json
import logging
import statistics
import sys
import time
from pathlib import Path

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends an optional kernel package at every import

import bitsandbytes as bnb
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import LLAMA_2_7B, random_llama, sync

from pocketguide.core.config import load_config
from pocketguide.core.files import write_json
from pocketguide.core.runs import git_commit, versions
from pocketguide.train.microbatch import IGNORE, Layout, target_loss
from pocketguide.train.train import add_adapter

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SHAPE_7B = {**LLAMA_2_7B, "rms_norm_eps": 1e-5}
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}


def build(shape, weights):
    """Return the random model in bfloat16, or with every linear layer of its blocks in nf4 with double quantisation, as
    `load_model` with `quantization: nf4` would have it."""
    torch.manual_seed(0)
    model = random_llama(DEVICE, **shape, attn_implementation="sdpa", tie_word_embeddings=False, use_cache=False)
    if weights == "nf4":
        for module in list(model.model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is torch.nn.Linear:
                    four = bnb.nn.Linear4bit(
                        layer.in_features,
                        layer.out_features,
                        bias=False,
                        compute_dtype=torch.bfloat16,
                        compress_statistics=True,
                        quant_type="nf4",
                        device="meta",
                    )
                    four.weight = bnb.nn.Params4bit(
                        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=four
                    ).to(DEVICE)
                    setattr(module, name, four)
        model.is_loaded_in_4bit = model.is_quantized = True  # what PEFT looks at
    return model


def random_batch(vocab, batch, tokens, targets):
    "Return a batch as training makes it."
    torch.manual_seed(1)
    rows = []
    for ids in torch.randint(vocab, (batch, tokens)):
        rows.append({"input_ids": ids, "labels": torch.cat([torch.full((tokens - targets,), IGNORE), ids[-targets:]])})
    (inputs,) = Layout(0, False, batch * tokens, batch).microbatches(rows)
    return {k: v.to(DEVICE) for k, v in inputs.items()}


def step(model, optimiser, inputs):
    "Run forward, backward and update as training does, and return the loss."
    with target_loss(model):
        loss = model(**inputs, labels=inputs["shift_labels"], num_items_in_batch=len(inputs["at"])).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return loss


def measure(shape, cfg, weights, batch, checkpointing, tokens, targets, steps):
    "Measure one setting and return its row of the result."
    row = {
        "weights": weights,
        "batch": batch,
        "gradient_checkpointing": checkpointing,
        "tokens": tokens,
        "targets": targets,
        "weights_gb": None,
        "peak_gb": None,
        "step_s": None,
        "tokens_per_s": None,
        "error": None,
    }
    try:
        model = build(shape, weights)
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
            row["weights_gb"] = round(torch.cuda.memory_allocated() / 1e9, 2)
            torch.cuda.reset_peak_memory_stats()
        peft = add_adapter(model, cfg)
        kinds = {type(m).__name__ for m in peft.modules()}
        assert ("Linear4bit" in kinds) == (weights == "nf4"), kinds
        if checkpointing:
            peft.gradient_checkpointing_enable({"use_reentrant": False})
        peft.train()
        optimiser = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-4, fused=CUDA)
        inputs, times = random_batch(shape["vocab_size"], batch, tokens, targets), []
        for _ in range(steps + 2):
            sync()
            began = time.perf_counter()
            loss = step(peft, optimiser, inputs)
            sync()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times[2:])
        row |= {
            "step_s": round(seconds, 3),
            "steps_s": [round(t, 3) for t in times[2:]],
            "tokens_per_s": round(batch * tokens / seconds),
            "last_loss": round(loss.item(), 3),
            "adapter_parameters": sum(p.numel() for p in peft.parameters() if p.requires_grad),
        }
        if CUDA:
            row |= {
                "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
                "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            }
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rehearsal on a tiny shape")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, after two that are not")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if not CUDA and not a.quick:
        parser.exit(
            2,
            "error: no CUDA device was found (benchmarks/qlora_memory.py): "
            "the 7B shape needs a GPU with 40 GB, --quick rehearses without\n",
        )
    torch.backends.cuda.matmul.allow_tf32 = True  # the adapter's float32 products, as in training
    shape, tokens, targets, steps = (TINY, 128, 32, 2) if a.quick else (SHAPE_7B, 2048, 512, a.steps)
    cfg = {
        w: load_config(ROOT / "configs/train_qlora_v4.yaml", [f"runtime.quantization={q}"])
        for w, q in (("bfloat16", "none"), ("nf4", "nf4"))
    }
    out = a.out or ROOT / f"benchmarks/results/qlora_memory{'_quick' * a.quick}.json"
    with torch.device("meta"):
        parameters = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).num_parameters()
    result = {
        "device": torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads",
        "git_commit": git_commit(ROOT),
        "versions": versions(),
        "shape": {
            "name": "a tiny shape" if a.quick else "Llama-2-7B's shape",
            "parameters": parameters,
            "rank": cfg["nf4"].lora.r,
            "tokens": tokens,
            **shape,
        },
        "rows": [],
    }
    for weights in ("bfloat16", "nf4"):
        for batch, checkpointing in ((1, False), (1, True), (4, True)):
            result["rows"].append(measure(shape, cfg[weights], weights, batch, checkpointing, tokens, targets, steps))
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
            write_json(out, result)
            print(json.dumps(result["rows"][-1]), flush=True)
    print(out)


if __name__ == "__main__":
    main()
