"""Measure how fast training is: every way side by side, each in a process of its own, with the same data, model, LoRA,
precision, optimiser and effective batch.

    python benchmarks/train_speed.py --part check v2 v3 7b      # on a GPU; each part can be run alone
    python benchmarks/train_speed.py --part seeds               # validation loss of three seeds, here and in TRL
    python benchmarks/train_speed.py --part world --world 1 2 4 --run_dir runs/train/<RUN_ID>
    python benchmarks/train_speed.py --part cpu                 # two cores
    python benchmarks/train_speed.py --part ... --quick         # a rehearsal with a tiny model

Writes benchmarks/results/train_speed_<cuda|cpu>.json, each row as soon as it is measured; other rows stay. TRL is no
requirement of this project: pip install trl datasets, or leave its rows out with --methods.

Tokens are prompt and target alike, without padding. Steady tokens per second leave out the first third of the steps;
cold seconds begin when the process is started. `whole_s` is the whole training of the version whose config is used,
computed from the measured start and the measured steps. 7b is Llama-2-7B's shape with random weights, made on the
device.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from common import LLAMA_2_7B, random_llama, sync
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging as hf_logging

from pocketguide.contract.task import load_task
from pocketguide.core.cli import command
from pocketguide.core.config import load_config
from pocketguide.core.errors import UserError
from pocketguide.core.files import write_json, write_jsonl
from pocketguide.core.runs import Run, create_run, git_commit, versions
from pocketguide.engine.adapters import load_adapter
from pocketguide.engine.models import load_model, load_tokenizer, pick_device, pick_dtype
from pocketguide.engine.testing import make_tiny_base
from pocketguide.train import train as t
from pocketguide.train.microbatch import IGNORE, Layout, MicrobatchStep, attention_for, fused, target_loss

CUDA = torch.cuda.is_available()
OURS = {
    "ours": (),
    "ours_packed": ("runtime.layout=packed",),
    "ours_compile": ("runtime.compile=true",),
    "ours_capture": ("runtime.cuda_graphs=true",),
    "ours_capture_padded": ("runtime.cuda_graphs=true", "runtime.layout=padded"),
    "ours_compile_capture": ("runtime.compile=true", "runtime.cuda_graphs=true"),
    "ours_liger": ("runtime.cuda_graphs=true", "runtime.liger=true"),
    "ours_capture_4k": ("runtime.cuda_graphs=true", "training.micro_batch_tokens=4096"),
    "ours_packed_8k": ("runtime.layout=packed", "training.micro_batch_tokens=8192"),
    "ours_packed_2": (
        "runtime.layout=packed",
        "runtime.checkpoint_every_n_layers=2",
        "training.micro_batch_tokens=2048",
    ),
}
TITLES = {
    "trl": "TRL SFTTrainer, batch 8",
    "trl_packing": "TRL SFTTrainer, packing",
    "trl_liger": "TRL SFTTrainer, batch 8, Liger",
    "accumulated": "batch 1, accumulation 8 (starting point)",
    "first": "Trainer over PEFT's layers, padded rows, all logits (first version)",
    "ours": "train.train",
    "ours_packed": "train.train, packed",
    "ours_compile": "train.train, compiled layers",
    "ours_capture": "train.train, packed, CUDA graphs",
    "ours_capture_padded": "train.train, padded, CUDA graphs",
    "ours_compile_capture": "train.train, compiled, CUDA graphs",
    "ours_liger": "train.train, packed, CUDA graphs, Liger",
    "ours_capture_4k": "train.train, packed, CUDA graphs, passes of 4,096 tokens",
    "ours_packed_8k": "train.train, packed, passes of 8,192 tokens",
    "ours_packed_2": "train.train, packed, every 2nd layer recomputed, passes of 2,048 tokens",
}
COMMON = (
    "training.effective_batch_size=8",
    "training.micro_batch_size=8",
    "training.group_by_length=false",
    "training.select_best=last",
    "training.patience=0",
    "training.eval_rows=8",
    "runtime.compile=false",
    "runtime.cuda_graphs=false",
)
V3 = (
    "data.train=data/v3/train.jsonl",
    "data.val=data/v3/val.jsonl",
    "data.payload_type_line=false",
    "data.topic_line=false",
    "data.classification_rows=''",
)  # answers only: their rows are the same for every method
PARTS = {  # config, overrides, steps, methods
    "v2": (
        "configs/train_lora_v4.yaml",
        COMMON,
        60,
        (
            "trl",
            "trl_packing",
            "trl_liger",
            "accumulated",
            "first",
            "ours",
            "ours_compile",
            "ours_capture",
            "ours_capture_4k",
            "ours_capture_padded",
            "ours_liger",
        ),
    ),
    "v3": (
        "configs/train_lora_v5.yaml",
        (*COMMON, *V3),
        90,
        (
            "trl",
            "trl_packing",
            "trl_liger",
            "ours",
            "ours_compile",
            "ours_capture",
            "ours_capture_4k",
            "ours_capture_padded",
            "ours_liger",
        ),
    ),
    "7b": (
        "configs/train_lora_v5.yaml",
        (*COMMON, *V3, "runtime.gradient_checkpointing=true", "training.micro_batch_tokens=4096"),
        12,
        ("trl", "ours", "ours_packed", "ours_packed_8k", "ours_packed_2", "trl_packing", "trl_liger"),
    ),
    "cpu": ("configs/train_lora_v4.yaml", (*COMMON, "training.eval_rows=1"), 3, ("trl", "first", "ours")),
    "seeds": ("configs/train_lora_v4.yaml", COMMON, 100, ("trl", "ours_capture") if CUDA else ("trl", "ours")),
    "world": (
        "configs/train_lora_v5.yaml",
        (
            *COMMON,
            *V3,
            "training.effective_batch_size=32",
            "runtime.gradient_checkpointing=true",
            "training.micro_batch_tokens=4096",
            "runtime.layout=packed",
        ),
        8,
        ("ours",),
    ),
}
STEPS = {"accumulated": 9}  # slow: fewer steps say as much


# ---------------------------------------------------------------- data and models


def config(part, method, seed, steps, quick, extra=()):
    "Return the config of one measurement."
    path, overrides = PARTS[part][:2]
    over = [*overrides, f"training.max_steps={steps}", f"seed={seed}", *OURS.get(method, ()), *extra]
    if quick:
        quick = Path(quick)
        over += [
            f"base_model_id={quick / 'base'}",
            f"data.train={quick / 'train.jsonl'}",
            f"data.val={quick / 'val.jsonl'}",
            "data.facts_block=false",
            "data.max_seq_len=512",
            "training.warmup_steps=1",
        ]
    return load_config(ROOT / path, over)


def prepare_quick(folder):
    "Write a tiny base and a few short rows into `folder`, for rehearsals."
    make_tiny_base(folder / "base")
    rows = [
        {
            "id": f"r{i}",
            "messages": [
                {"role": "system", "content": "Answer in JSON."},
                {"role": "user", "content": f"Question {i}" + "?" * (7 * i % 40)},
            ],
            "target": '{"a":"%s"}' % ("x" * (11 * i % 70)),
            "metadata": {},
        }
        for i in range(40)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows[:4])


def shaped(part, quick):
    "Return a model of Llama-2-7B's shape with random weights, on the device; None for parts that load the real one."
    if part not in ("7b", "world"):
        return None
    if quick:  # a smaller vocabulary than the tokenizer's, as the real one's
        return (
            LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=200,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                )
            )
            .eval()
            .to(pick_device())
        )
    torch.manual_seed(0)
    return random_llama(pick_device(), **LLAMA_2_7B, eos_token_id=2, pad_token_id=2).eval()


def training_rows(cfg, path, limit=None):
    "Return the first `limit` rows of a file as the config says that they are trained on."
    return load_task().training_rows(path, cfg.data, limit)


def folded(rows, vocabulary):
    """Return the same rows with their ids, labels included, modulo another model's vocabulary: its speed does not
    depend on what they say."""
    return [
        {
            "input_ids": r["input_ids"] % vocabulary,
            "labels": torch.where(r["labels"] == IGNORE, IGNORE, r["labels"] % vocabulary),
        }
        for r in rows
    ]


# ---------------------------------------------------------------- one measurement, in a process of its own


class Clock(TrainerCallback):
    "Record when steps ended, and their losses."

    def __init__(self, steps):
        self.skip, self.steps, self.at, self.losses, self.tokens = max(1, steps // 3), steps, {}, [], {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (1, self.skip, self.steps):
            sync()
        self.at[state.global_step] = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append([state.global_step, round(float(logs["loss"]), 5)])
        if "num_tokens" in (logs or {}):  # TRL counts for itself: tokens without padding, so far
            self.tokens[state.global_step] = logs["num_tokens"]

    def row(self, per_step):
        "Return what was measured. `per_step`: tokens of each step, if they were counted here."
        total = self.tokens or {i: sum(per_step[:i]) for i in self.at}
        seconds = (self.at[self.steps] - self.at[self.skip]) / (self.steps - self.skip)
        began = float(os.environ["BENCH_BEGAN"])
        return {
            "steps": self.steps,
            "step_s": round(seconds, 4),
            "tokens_per_s": round(
                (total[self.steps] - total[self.skip]) / (self.at[self.steps] - self.at[self.skip]), 1
            ),
            "tokens": total[self.steps],
            "first_step_s": round(self.at[1] - began, 2),
            "warm_s": round(self.at[self.skip] - began, 2),
            "losses": self.losses,
            "peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if CUDA else None,
            "peak_reserved_mb": round(torch.cuda.max_memory_reserved() / 2**20) if CUDA else None,
        }


def measure_ours(cfg, part, quick, steps, folder):
    """Measure `train.train` as it is; only the clock is added, one log row per step, and nothing is evaluated or saved
    between steps, as with the other methods."""
    clock, counted = Clock(steps), []
    arguments, collate, step_end, on_log = (
        t.training_arguments,
        t.Collator.__call__,
        t.RunLog.on_step_end,
        t.RunLog.on_log,
    )

    def logging_every_step(*args, **kwargs):
        made = arguments(*args, **kwargs)
        made.logging_steps, made.eval_strategy, made.save_strategy = 1, IntervalStrategy.NO, SaveStrategy.NO
        return made

    def counting(self, items):
        counted.append(sum(len(ids) for x in items for ids in t.sequences(x, "input_ids")))
        return collate(self, items)

    def ending(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        clock.on_step_end(args, state, control)

    def logged(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs=logs, **kwargs)
        clock.on_log(args, state, control, logs=logs)

    ranks = t.join_ranks(cfg.runtime.device)  # first: it chooses this rank's GPU
    own, data = shaped(part, quick), None
    if own is not None:
        data = t.load_sft(load_task(), cfg, load_tokenizer(cfg.base_model_id))
        for rows in data:
            rows.examples = folded(rows.examples, own.config.vocab_size)
    run = Run(Path(ranks.broadcast(str(create_run(cfg, folder).path) if ranks.first else None)))
    with (
        patch.object(t, "training_arguments", logging_every_step),
        patch.object(t.Collator, "__call__", counting),
        patch.object(t.RunLog, "on_step_end", ending),
        patch.object(t.RunLog, "on_log", logged),
        patch.object(t, "_selected", lambda by, log, step: {"by": by, "step": step}),
        patch.object(t, "load_model", lambda *a: own) if own is not None else contextlib.nullcontext(),
    ):
        t.train(cfg, run, quiet=True, data=data)
    trained = run.meta["training"]
    row = clock.row(counted)
    row |= {k: trained[k] for k in ("ranks", "packed", "tokens_a_pass", "recorded_passes")} | {
        "peak_mb": trained["peak_memory_mb"],
        "peak_reserved_mb": trained["peak_reserved_mb"],
    }
    return row, run.adapter, ranks


def rows_of(cfg):
    "Return the training rows as texts: prompt, and target with its end of turn."
    tokenizer = load_tokenizer(cfg.base_model_id)
    sft = training_rows(cfg, cfg.data.train)
    return tokenizer, [
        {
            "prompt": tokenizer.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True),
            "completion": r["target"] + tokenizer.eos_token,
        }
        for r in sft
    ]


def common_arguments(cfg, folder, batch, accumulation):
    "Return what TRL's and Trainer's arguments have in common with this project's."
    c, device = cfg.training, pick_device()
    return dict(
        output_dir=str(folder),
        seed=cfg.seed,
        data_seed=cfg.seed,
        use_cpu=not CUDA,
        max_steps=c.max_steps,
        learning_rate=c.learning_rate,
        lr_scheduler_type=c.lr_scheduler,
        warmup_steps=c.warmup_steps,
        weight_decay=c.weight_decay,
        max_grad_norm=c.max_grad_norm,
        optim="adamw_torch_fused" if CUDA else "adamw_torch",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        log_level="error",
        **({"tf32": True} if CUDA and pick_dtype(cfg.runtime.dtype, device) != torch.float32 else {}),
    )


def lora(cfg):
    from peft import LoraConfig

    return LoraConfig(
        r=cfg.lora.r,
        lora_alpha=cfg.lora.alpha,
        lora_dropout=cfg.lora.dropout,
        target_modules=cfg.lora.target_modules,
        task_type="CAUSAL_LM",
    )


def measure_trl(cfg, part, method, quick, steps, folder):
    """Measure TRL's SFTTrainer: loss on the completion only, bf16, batch 8; or packed rows with as many tokens; or
    Liger's kernels; or batch 1 with accumulation."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    dtype = pick_dtype(cfg.runtime.dtype, pick_device())
    own = shaped(part, quick)
    tokenizer, rows = rows_of(cfg)
    if own is not None:
        rows = [
            {"input_ids": x["input_ids"].tolist(), "completion_mask": (x["labels"] != IGNORE).int().tolist()}
            for x in folded(
                t.SFTDataset(training_rows(cfg, cfg.data.train), tokenizer, cfg.data.max_seq_len).examples,
                own.config.vocab_size,
            )
        ]
    packing, single = method == "trl_packing", method == "accumulated"
    batch = (
        max(1, round(8 * 900 / cfg.data.max_seq_len)) if packing and not quick else 1 if single else 8
    )  # packed rows are max_seq_len long: as many as have the tokens of eight examples
    args = SFTConfig(
        **common_arguments(cfg, folder, batch, 8 if single else 1),
        bf16=dtype == torch.bfloat16,
        max_length=cfg.data.max_seq_len,
        packing=packing,
        completion_only_loss=True,
        gradient_checkpointing=cfg.runtime.gradient_checkpointing,
        **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if cfg.runtime.gradient_checkpointing else {}),
        use_liger_kernel=method == "trl_liger",
        dataset_num_proc=min(8, os.cpu_count() // 2) if CUDA else None,
    )
    clock = Clock(steps)
    model = own if own is not None else load_model(cfg.base_model_id, cfg.runtime.dtype, cfg.runtime.device)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(cfg),
        callbacks=[clock],
    )
    if own is None and not packing:  # the same tokens, and the same of them in the loss
        mine = t.SFTDataset(training_rows(cfg, cfg.data.train, 3), tokenizer, cfg.data.max_seq_len)
        for ours, theirs in zip(mine.examples, trainer.train_dataset):
            assert ours["input_ids"].tolist() == list(theirs["input_ids"]), (
                tokenizer.decode(ours["input_ids"]),
                tokenizer.decode(theirs["input_ids"]),
            )
            mask = theirs["completion_mask"] if "completion_mask" in theirs else [y != IGNORE for y in theirs["labels"]]
            assert [bool(m) for m in mask] == (ours["labels"] != IGNORE).tolist()
    trainer.train()
    return {**clock.row([]), "rows_a_step": batch * (8 if single else 1)}, saved(trainer.model, cfg, folder, own)


def measure_first(cfg, part, method, quick, steps, folder):
    """Measure what this project's first version did: Trainer over PEFT's layers, eight padded rows with their attention
    mask, all logits."""
    tokenizer = load_tokenizer(cfg.base_model_id)
    train_set, _ = t.load_sft(load_task(), cfg, tokenizer)
    counted = []

    def collate(items):
        counted.append(sum(len(x["input_ids"]) for x in items))
        longest = max(len(x["input_ids"]) for x in items)

        def padded(key, fill):
            return torch.stack([torch.nn.functional.pad(x[key], (0, longest - len(x[key])), value=fill) for x in items])

        lengths = torch.tensor([len(x["input_ids"]) for x in items])
        return {
            "input_ids": padded("input_ids", tokenizer.pad_token_id),
            "labels": padded("labels", IGNORE),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }

    clock, model = (
        Clock(steps),
        t.add_adapter(load_model(cfg.base_model_id, cfg.runtime.dtype, cfg.runtime.device), cfg),
    )
    passes = (
        1 if CUDA else 4
    )  # all logits of eight rows, and what PEFT's layers keep, are too much for a small computer's memory
    args = TrainingArguments(
        **common_arguments(cfg, folder, 8 // passes, passes), remove_unused_columns=False, label_names=["labels"]
    )
    trainer = Trainer(model=model, args=args, train_dataset=train_set, data_collator=collate, callbacks=[clock])
    trainer.train()
    return {
        **clock.row([sum(counted[i : i + passes]) for i in range(0, len(counted), passes)]),
        "rows_a_pass": 8 // passes,
    }, saved(trainer.model, cfg, folder, None)


def saved(model, cfg, folder, own):
    "Save the adapter as this project does (bf16) and return its folder; None for a model that only has a shape."
    if own is not None:
        return None
    model.peft_config["default"].base_model_name_or_path = cfg.base_model_id
    t.save_adapter(model, Path(folder) / "adapter")
    return Path(folder) / "adapter"


@torch.no_grad()
def val_loss(adapter, cfg):
    "Return the cross-entropy per target token of the first 48 validation rows, the same way for every method."
    tokenizer = load_tokenizer(cfg.base_model_id)
    model = load_adapter(load_model(cfg.base_model_id, cfg.runtime.dtype, cfg.runtime.device), adapter).eval()
    rows = t.SFTDataset(training_rows(cfg, cfg.data.val, 48), tokenizer, cfg.data.max_seq_len).examples
    total = items = 0
    with target_loss(model):
        for inputs in Layout(tokenizer.pad_token_id, False, 8192, 8).microbatches(rows):
            inputs = {k: v.to(model.device) for k, v in inputs.items()}
            total += model(**inputs, labels=inputs["shift_labels"], num_items_in_batch=1).loss.item()
            items += len(inputs["at"])
    return round(total / items, 5)


def worker(a):
    "Make one measurement; its row goes into a file."
    hf_logging.set_verbosity_error()
    steps = a.steps
    cfg = config(a.part[0], a.one, a.seed, steps, a.quick_folder)
    with tempfile.TemporaryDirectory() as tmp:
        if a.one in OURS:
            row, adapter, ranks = measure_ours(cfg, a.part[0], a.quick_folder, steps, Path(tmp))
            if not ranks.first:
                ranks.wait()
                return
        else:
            row, adapter = (measure_first if a.one == "first" else measure_trl)(
                cfg, a.part[0], a.one, a.quick_folder, steps, Path(tmp)
            )
        row["train_s"] = round(
            time.time() - float(os.environ["BENCH_BEGAN"]), 2
        )  # from the start of the process to the trained adapter
        if a.part[0] not in ("7b", "world"):
            row["val_loss"] = val_loss(adapter, cfg)
        write_json(a.row, row)
        if a.one in OURS:
            ranks.wait()


# ---------------------------------------------------------------- the parts


def needs(method, quick_ok=True):
    "Return why a method cannot be measured here, None if it can."
    import importlib.util

    if method.startswith("trl") or method == "accumulated":
        missing = [m for m in ("trl", "datasets") if importlib.util.find_spec(m) is None]
        if missing:
            raise UserError(
                f"not installed: {', '.join(missing)}",
                "TRL's rows",
                "pip install trl datasets, or name the rows without it: --methods ours first",
            )
    if "liger" in method and importlib.util.find_spec("liger_kernel") is None:
        return "liger_kernel is not installed"
    if ("liger" in method or "capture" in method or "compile" in method) and not CUDA:
        return "needs a GPU"
    return None


def error_line(output):
    """Return the most telling line of a failed process: its first error, else its last line. (After an error on a GPU
    the frames of the process's end follow.)"""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (
        [line for line in lines if "Assertion" in line or "Error: " in line or line.startswith("error: ")]
        or lines[-1:]
        or ["no output"]
    )[0][:300]


def one(part, method, seed, steps, quick, world=1):
    "Return one row, measured in a process of its own (in `world` of them under torchrun)."
    with tempfile.TemporaryDirectory() as tmp:
        result = Path(tmp) / "row.json"
        script = [
            str(Path(__file__).resolve()),
            "--part",
            part,
            "--one",
            method,
            "--seed",
            str(seed),
            "--steps",
            str(steps),
            "--row",
            str(result),
            *(["--quick_folder", str(quick)] if quick else []),
        ]
        cmd = [
            sys.executable,
            *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []),
            *script,
        ]
        env = {
            **os.environ,
            "BENCH_BEGAN": str(time.time()),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "TOKENIZERS_PARALLELISM": "true",
        }
        done = subprocess.run(cmd, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        cold = round(time.time() - float(env["BENCH_BEGAN"]), 2)
        row = {"method": method, "title": TITLES[method], "seed": seed, **({"world": world} if part == "world" else {})}
        if done.returncode or not result.exists():
            print(done.stdout[-3000:], file=sys.stderr)
            return {**row, "error": f"exit {done.returncode}: {error_line(done.stdout)}", "seconds": cold}
        return {**row, **json.loads(result.read_text()), "cold_s": cold}


def whole_steps(part):
    "Return the optimiser steps of the version's whole training, at the effective batch of this part."
    cfg = load_config(ROOT / PARTS[part][0], PARTS[part][1])
    examples = len(t.read_jsonl(cfg.data.train))
    return round(cfg.training.num_epochs * -(-examples // cfg.training.effective_batch_size))


def measure_part(part, methods, seeds, steps, quick, keep):
    "Measure all rows of a part."
    for method in methods or PARTS[part][3]:
        reason = needs(method)
        n = steps or (6 if quick else min(PARTS[part][2], STEPS.get(method, 10**9)))
        for seed in seeds:
            row = (
                {"method": method, "title": TITLES[method], "seed": seed, "skipped": reason}
                if reason
                else one(part, method, seed, n, quick)
            )
            if part == "seeds":
                row.pop("losses", None)  # what this part is for is the validation loss
            if "step_s" in row and part in ("v2", "v3", "cpu") and not quick:
                row["whole_steps"] = whole_steps(part)
                row["whole_s"] = round(row["warm_s"] + (row["whole_steps"] - max(1, n // 3)) * row["step_s"], 1)
            keep(part, row)


def measure_world(worlds, steps, quick, run_dir, keep):
    "Measure training of the 7B shape, and the evaluation of 200 prompts, on 1, 2, 4 ... GPUs."
    for world in worlds:
        keep("world", one("world", "ours", 42, steps or (4 if quick else PARTS["world"][2]), quick, world))
        for batch in (8, 40) if run_dir else ():
            keep("world", evaluation(world, run_dir, batch, quick))


def evaluation(world, run_dir, batch, quick):
    "Measure `run_samples` on `world` GPUs, `batch` prompts at a time on each: the command, and the decoding alone."
    suite = ROOT / "eval/suites/fixed200_v1.jsonl"
    with tempfile.TemporaryDirectory() as tmp:
        ask = [
            "-m",
            "pocketguide.train.run_samples",
            "--run_dir",
            str(run_dir),
            "--prompts",
            str(suite),
            "--batch_size",
            str(batch),
            "--out",
            tmp,
            "--quiet",
            *(["--max_new_tokens", "8"] if quick else []),
        ]
        cmd = [
            sys.executable,
            *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []),
            *ask,
        ]
        began = time.time()
        done = subprocess.run(
            cmd,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )
        prompts = len(t.read_jsonl(suite))
        row = {
            "method": f"run_samples_{batch}",
            "title": f"run_samples, {prompts} prompts, base and {Path(run_dir).name}, batch {batch} a GPU",
            "seed": 42,
            "world": world,
            "cold_s": round(time.time() - began, 2),
        }
        if done.returncode:
            return {**row, "error": done.stdout[-400:]}
        m = json.loads(next(Path(tmp).rglob("comparison_metrics.json")).read_text())
    g = m["generation"]
    return {
        **row,
        "decoding_s": g["wall_s"],
        "tokens": g["base"]["tokens"] + g["finetuned"]["tokens"],
        "schema_valid": m["finetuned"]["counts"]["schema_valid_rate"],
        "n": m["num_prompts"],
    }


def check(quick):
    """Compare every way of laying out and running a microbatch with PEFT's layers on padded rows, on this device, with
    real weights and rows: the loss, and how far the gradients are off, beside how far half precision alone is off."""
    cfg = config("v2", "ours", 42, 1, quick, ["lora.dropout=0"])
    tokenizer = load_tokenizer(cfg.base_model_id)
    rows = t.SFTDataset(training_rows(cfg, cfg.data.train, 8), tokenizer, cfg.data.max_seq_len).examples
    items = sum(int((x["labels"][1:] != IGNORE).sum()) for x in rows)

    def model(dtype):
        m = t.add_adapter(load_model(cfg.base_model_id, dtype, "auto"), cfg)
        for i, (name, w) in enumerate(m.named_parameters()):
            if "lora_B" in name:
                torch.nn.init.normal_(w, std=0.01, generator=torch.Generator(w.device).manual_seed(i))
        return m.train()

    def gradients(m, layout, fuse, cuda_graphs, repeat=1):
        step = MicrobatchStep(m, cuda_graphs=cuda_graphs)
        with attention_for(m, layout), fused(m) if fuse else contextlib.nullcontext():
            for _ in range(repeat):  # a graph is captured in the first step and replayed in the second
                loss = step.run(layout.microbatches(rows), items).item()
        return loss, step.flat.clone()

    pad, longest = tokenizer.pad_token_id, cfg.data.max_seq_len
    exact_loss, exact = gradients(model("float32"), Layout(pad, False, 8192, 8), False, False)
    half = model("bfloat16")
    ways = {
        "padded, PEFT's layers": (Layout(pad, False, 8192, 8), False, False),
        "padded, joint layers": (Layout(pad, False, 8192, 8), True, False),
        "packed, PEFT's layers": (Layout(pad, True, 8192, 8), False, False),
        "packed, joint layers": (Layout(pad, True, 8192, 8), True, False),
        "packed, joint, two passes": (Layout(pad, True, 4096, 8), True, False),
        "padded, joint, captured": (Layout(pad, False, 4096, 8, longest, 1024), True, True),
        "packed, joint, captured": (Layout(pad, True, 4096, 8, longest, 1024), True, True),
    }
    out, known = [{"way": "float32, padded, PEFT's layers", "loss": exact_loss, "gradient_off": 0.0}], None
    for name, (layout, fuse, graphs) in ways.items():
        try:
            loss, grads = gradients(half, layout, fuse, graphs, 2 if graphs else 1)
            off = ((grads - exact).norm() / exact.norm()).item()
            known = known or off  # PEFT's own layers in half precision: what may be off
            out.append(
                {
                    "way": name,
                    "loss": round(loss, 5),
                    "gradient_off": round(off, 4),
                    "ok": abs(loss - exact_loss) < 0.02 and off < 2 * known + 1e-3,
                }
            )
        except Exception as e:
            out.append({"way": name, "error": f"{type(e).__name__}: {e}"[:300], "ok": False})
        print(json.dumps(out[-1]), flush=True)
    return out


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", nargs="+", choices=["check", *PARTS], default=["check", "v2", "v3", "7b"] if CUDA else ["cpu"]
    )
    parser.add_argument("--methods", nargs="+", choices=list(TITLES), help="only these rows")
    parser.add_argument("--world", nargs="+", type=int, default=[1], help="numbers of GPUs of the part world")
    parser.add_argument("--run_dir", type=Path, help="part world: a run with an adapter, to be evaluated")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of each part's own number")
    parser.add_argument(
        "--quick", action="store_true", help="a rehearsal: tiny model, few steps, nothing written but to --out"
    )
    parser.add_argument(
        "--out", type=Path, help="where the rows go; benchmarks/results/train_speed_<cuda|cpu>.json if left out"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=42, help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick_folder", help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.one:
        return worker(a)
    out = a.out or (
        Path(tempfile.gettempdir()) / "train_speed_quick.json"
        if a.quick
        else ROOT / f"benchmarks/results/train_speed_{'cuda' if CUDA else 'cpu'}.json"
    )
    result = json.loads(out.read_text()) if out.exists() else {"parts": {}}

    def keep(part, row):
        device = {
            "device": torch.cuda.get_device_name() if CUDA else f"cpu, {torch.get_num_threads()} threads",
            "git_commit": git_commit(ROOT),
        }
        rows = result["parts"].setdefault(part, {"rows": []})["rows"]
        same = ("method", "seed", "world")
        rows[:] = [r for r in rows if [r.get(k) for k in same] != [row.get(k) for k in same]] + [{**row, **device}]
        result.update(device, versions={**versions(), **_trl_version()})
        write_json(out, result)
        print(
            json.dumps(row), flush=True
        )  # all of it: where the file does not come back from a machine, what was printed does

    with tempfile.TemporaryDirectory() as tmp:
        quick = None
        if a.quick:
            quick = Path(tmp)
            prepare_quick(quick)
        for part in a.part:
            if part == "check":
                result["check"] = {
                    "rows": check(quick),
                    "git_commit": git_commit(ROOT),
                    "device": torch.cuda.get_device_name() if CUDA else "cpu",
                }
                write_json(out, result)
            elif part == "world":
                measure_world(a.world, a.steps, quick, a.run_dir, keep)
            else:
                measure_part(part, a.methods, (42, 43, 44) if part == "seeds" else (a.seed,), a.steps, quick, keep)
    print(out)


def _trl_version():
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return {"trl": importlib.metadata.version("trl")}
    return {}


if __name__ == "__main__":
    main()
