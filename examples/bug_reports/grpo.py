"""Tune a run further by GRPO (TRL), with the checks of its answers as reward, and compare the two by the paired test.

    python examples/bug_reports/grpo.py --run_dir bugs/runs/<RUN_ID> --prompts bugs/test.jsonl

The run has to be trained, and evaluated on the suite (README). The new run stands beside it, with `grpo.json`:
settings, the rewards step by step, and the test of every rate. Needs TRL: pip install "pocketguide[grpo]"
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import yaml
from fields import FIXED, copied, field_rates
from transformers import PrinterCallback, TrainerCallback

from pocketguide.contract.gate import compare_rates, gate_rows, read_reference
from pocketguide.contract.task import Task, run_task
from pocketguide.core.cli import Parser, command
from pocketguide.core.errors import UserError
from pocketguide.core.files import read_jsonl, write_json
from pocketguide.core.runs import Run, create_run, open_run, versions
from pocketguide.core.stats import markdown_table
from pocketguide.engine.generate import end_tokens
from pocketguide.engine.models import load_model, load_tokenizer, quiet_peft
from pocketguide.train import run_samples
from pocketguide.train.train import save_adapter


def import_trl():
    "Return TRL and datasets. `UserError` if one of them is not installed."
    try:
        with quiet_peft():
            import datasets
            import trl
    except ImportError as e:
        raise UserError(f"GRPO needs a package that is missing: {e.name}", "TRL", "pip install trl datasets") from None
    return trl, datasets


def share_equal(report: dict, written: dict, message: str) -> float:
    "Return the share of the fixed words that are the written ones."
    return sum(value(report) == value(written) for value in FIXED.values()) / len(FIXED)


def overlap(report: dict, written: dict, message: str) -> float:
    """Return how far the copied texts are the written ones: those in both, of those in one of them; of none, 1.

    One that does not stand in the message counts against it, and so does leaving one out: else silence would pay."""
    found, wanted = set(copied(report)), set(copied(written))
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0


CHECKS: dict[str, Callable[[dict, dict, str], float]] = {
    "fits": lambda report, written, message: 1.0,  # what is asked of an answer at all: it fits the schema
    "fixed_words": share_equal,
    "copied_texts": overlap,
}


def reward(name: str, task: Task, ends: list[int]) -> Callable[..., list[float]]:
    "Return a check as TRL calls it: one number for each drawn answer, 0 for one that does not fit the schema."

    def score(completions, completion_ids, message, written, **kwargs) -> list[float]:
        scores = []
        for (turn,), ids, said, text in zip(completions, completion_ids, message, written):
            finish = "eos" if ids and ids[-1] in ends else "length"
            verdict = task.judge(turn["content"], {"prompt": said}, finish)
            valid = verdict.schema_valid and finish == "eos"
            scores.append(CHECKS[name](verdict.parsed, json.loads(text), said) if valid else 0.0)
        return scores

    score.__name__ = name
    return score


def question_rows(task: Task, run: Run, parts: list[str]) -> list[dict]:
    "Return the rows that are asked, as TRL reads them: the chat, and what the checks need."
    data = run.config.data
    rows = [row for part in parts for row in task.training_rows(getattr(data, part), data)]
    return [
        {"prompt": row["messages"], "message": row["messages"][-1]["content"], "written": row["target"]} for row in rows
    ]


class TimeLimit(TrainerCallback):
    "Stop the training after some minutes."

    def __init__(self, minutes: float):
        self.end = time.perf_counter() + 60 * minutes

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= time.perf_counter() > self.end


def make_trainer(sft: Run, task: Task, settings: dict, folder: Path):
    "Return TRL's trainer of the tuned run's adapter."
    trl, datasets = import_trl()
    from peft import PeftModel

    cfg, tokenizer = sft.config, load_tokenizer(sft.config.base_model_id)
    tokenizer.padding_side = "left"
    model = load_model(cfg.base_model_id, cfg.runtime.dtype, cfg.runtime.device)
    ends = end_tokens(model, tokenizer)
    with quiet_peft():
        model = PeftModel.from_pretrained(model, sft.adapter, is_trainable=True)
        fixed = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "bf16": False}
        fixed |= {"gradient_checkpointing": False, "use_cpu": model.device.type == "cpu", "log_level": "error"}
        args = trl.GRPOConfig(
            output_dir=str(folder), reward_weights=list(settings["rewards"].values()), **fixed, **settings["grpo"]
        )
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=[reward(name, task, ends) for name in settings["rewards"]],
            args=args,
            train_dataset=datasets.Dataset.from_list(question_rows(task, sft, settings["rows"])),
            processing_class=tokenizer,
            callbacks=[TimeLimit(settings["minutes"])],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def tuned_further(sft: Run, task: Task, settings: dict) -> Run:
    "Train, and return the new run, beside the old one."
    name = f"{sft.config.name}-grpo"
    run = create_run(dataclasses.replace(sft.config, name=name), sft.path.absolute().parent)
    task.save_contract(run)
    run.update_meta(task={"name": task.name, "schema_hash": task.schema_hash}, tuned_from=sft.run_id)
    trainer, began = make_trainer(sft, task, settings, run.path / "checkpoints"), time.perf_counter()
    with quiet_peft():
        trainer.train()
    seconds = round(time.perf_counter() - began, 1)
    if "ref" in trainer.model.peft_config:  # TRL's copy of the tuned adapter, from which the divergence is measured
        trainer.model.delete_adapter("ref")
    save_adapter(trainer.model, run.adapter)
    log = [
        {k: round(v, 5) for k, v in row.items() if is_told(k)} for row in trainer.state.log_history if "reward" in row
    ]
    result = {"settings": settings, "versions": versions(), "device": str(trainer.model.device), "seconds": seconds}
    write_json(run.path / "grpo.json", {**result, "steps": trainer.state.global_step, "log": log})
    return run


def is_told(key: str) -> bool:
    "Return True for what `grpo.json` keeps of TRL's log."
    named = ("reward", "reward_std", "frac_reward_zero_std", "kl", "step_time", "completions/mean_length")
    return key in named or (key.startswith("rewards/") and key.endswith("/mean"))


def compare_answers(before: list[dict], run: Run, task: Task, suite: run_samples.Suite) -> list[dict]:
    "Return the paired test of every rate, between the tuned run's answers to the suite and those of the new run."
    after = read_jsonl(run.samples(suite.name) / "finetuned_outputs.jsonl")
    written = {row["prompt"]: row["target"] for row in suite.rows}
    return compare_rates(before, after, {**task.rates, **field_rates(written)})


def read_settings(path: Path) -> dict:
    "Return the config. `UserError` for one that lacks a key, or names a check that is none."
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys = {"rows", "rewards", "minutes", "max_new_tokens", "grpo"}
    if not isinstance(settings, dict) or set(settings) != keys:
        raise UserError("the config needs exactly the keys " + ", ".join(sorted(keys)), path, "see grpo.yaml")
    if unknown := set(settings["rewards"]) - set(CHECKS):
        raise UserError(f"there is no check {min(unknown)!r}", path, f"use {', '.join(CHECKS)}")
    return settings


def read_arguments(argv):
    p = Parser(prog="grpo.py", description="Tune a run of the bug reports further by GRPO, and compare.")
    p.add_argument("--run_dir", type=Path, required=True, help="a run that is trained, and evaluated on the suite")
    p.add_argument("--prompts", type=Path, required=True, help="the suite: messages with their reports as `target`")
    p.add_argument("--config", type=Path, default=HERE / "grpo.yaml", help="the settings")
    return p.parse_args(argv)


@command
def main(argv=None) -> None:
    "Train, evaluate, compare."
    a = read_arguments(argv)
    sft, settings = open_run(a.run_dir, adapter=True), read_settings(a.config)
    task = run_task(sft)
    suite = run_samples.load_suite(a.prompts, task)
    ids = {suite.name: [row["id"] for row in suite.rows]}
    before = read_reference(sft.path, task, ids)[suite.name]  # read before minutes are spent
    run = tuned_further(sft, task, settings)
    limit = ["--max_new_tokens", str(settings["max_new_tokens"])]
    run_samples.main(["--run_dir", str(run.path), "--prompts", str(a.prompts), *limit, "--quiet"])
    tests = compare_answers(before, run, task, suite)
    path = run.path / "grpo.json"
    write_json(path, {"tuned_from": sft.run_id, "n": len(suite.rows), "tests": tests, **json.loads(path.read_text())})
    print(markdown_table(gate_rows(tests, suite.name, "tuned", "after GRPO")))
    print(f"results: {path}")


if __name__ == "__main__":
    main()
