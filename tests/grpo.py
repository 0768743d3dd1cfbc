"""Tune a tiny run of the bug reports by GRPO: what the checks reward, and that run, answers and test come out.

python tests/grpo.py

Says so, and tests the checks alone, if TRL is not installed.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/bug_reports"
sys.path[:0] = [str(EXAMPLE), str(ROOT)]

import grpo
import yaml

from pocketguide import new
from pocketguide.contract.task import load_schema_task
from pocketguide.core.config import load_config
from pocketguide.core.files import read_jsonl, write_jsonl
from pocketguide.engine.adapters import adapter_tensors
from pocketguide.engine.chat import encode_chats
from pocketguide.engine.models import load_tokenizer
from pocketguide.engine.testing import make_tiny_base, make_tiny_run
from pocketguide.train import run_samples

END = 7  # an id that ends a turn


def check_rewards(rows: list[dict]) -> None:
    "Check what right, wrong, invented and invalid answers are worth."
    task = load_schema_task(EXAMPLE / "bug_report.schema.json")
    row = next(r for r in rows if {"version", "device"} <= set(r["completion"]["environment"]))
    right, text = row["completion"], json.dumps(row["completion"])
    severity = "cosmetic" if right["severity"] != "cosmetic" else "slow"
    invented = {**right, "environment": {**right["environment"], "version": "999.9"}}
    silent = {**right, "environment": {k: v for k, v in right["environment"].items() if k != "version"}}
    answers = [text, json.dumps({**right, "severity": severity}), json.dumps(invented), json.dumps(silent), text[:-1]]
    ids = [[1, END]] * 5 + [[1, 2]]  # the last one is right, but goes on

    def scores(name: str) -> list[float]:
        turns = [[{"role": "assistant", "content": a}] for a in [*answers, text]]
        return grpo.reward(name, task, [END])(turns, ids, [row["prompt"]] * 6, [text] * 6)

    assert scores("fits") == [1, 1, 1, 1, 0, 0], scores("fits")
    assert scores("fixed_words") == [1, 0.75, 1, 1, 0, 0], scores("fixed_words")
    copied = scores("copied_texts")
    assert copied[0] == copied[1] == 1 and copied[2] < 1 and copied[3] < 1 and copied[4:] == [0, 0], copied
    assert copied[2] < copied[3], "to invent is worse than to leave out"


def letters(name: str, task, ends) -> object:
    "Return a reward that a random model can earn, since its answers differ in it: the share of plain letters."

    def score(completions, **kwargs) -> list[float]:
        texts = [turn["content"] for (turn,) in completions]
        return [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in texts]

    score.__name__ = name
    return score


def tiny_run(rows: list[dict]):
    "Return a run of a tiny base with a random adapter, evaluated on two messages."
    write_jsonl("rows.jsonl", rows[:24])
    new.main(["bugs", "--schema", str(EXAMPLE / "bug_report.schema.json"), "--rows", "rows.jsonl"])
    base = make_tiny_base("base")
    sizes = ["data.max_seq_len=8192", "lora.r=2", "runtime.dtype=float32", "runtime.device=cpu"]
    cfg = load_config("bugs/config.yaml", [f"base_model_id={base}", *sizes])
    run = make_tiny_run(cfg, "bugs/runs", seed=1)
    write_jsonl("bugs/two.jsonl", read_jsonl("bugs/test.jsonl")[:2])
    run_samples.main(["--run_dir", str(run.path), "--prompts", "bugs/two.jsonl", "--max_new_tokens", "8", "--quiet"])
    return run


def check_prompts(run) -> None:
    "Check that TRL asks what evaluation asks, token by token."
    tokenizer, task = load_tokenizer(run.config.base_model_id), grpo.run_task(run)
    for row in grpo.question_rows(task, run, ["val"]):
        found = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert found == encode_chats(tokenizer, [(row["prompt"], None)], ["row"])[0][0], row["message"]


def check_training(run) -> None:
    "Check that two steps change the adapter, and what is written."
    settings = yaml.safe_load((EXAMPLE / "grpo.yaml").read_text())
    small = {"max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings["grpo"] |= {**small, "steps_per_generation": 2, "max_completion_length": 6, "warmup_steps": 0}
    Path("grpo.yaml").write_text(yaml.safe_dump(settings | {"max_new_tokens": 8}))
    grpo.reward = letters
    write_jsonl("bugs/two.jsonl", read_jsonl("bugs/two.jsonl")[::-1])  # the tuned run's answers are found by their ids
    grpo.main(["--run_dir", str(run.path), "--prompts", "bugs/two.jsonl", "--config", "grpo.yaml"])
    (made,) = Path("bugs/runs").glob("*-grpo")
    result = json.loads((made / "grpo.json").read_text())
    assert (result["steps"], len(result["log"]), result["n"]) == (2, 2, 2), result
    assert all(step["reward_std"] > 0 for step in result["log"]), result["log"]
    assert {"schema_valid_rate", "product", "nothing invented"} <= {test["rate"] for test in result["tests"]}
    before, after = adapter_tensors(run.adapter), adapter_tensors(made / "adapter")
    assert before.keys() == after.keys() and any((before[k].float() - after[k].float()).abs().max() > 0 for k in before)
    assert not (made / "adapter/ref").exists(), "the copy that measures the divergence is kept"


def main() -> None:
    "Run the checks."
    rows = read_jsonl(EXAMPLE / "rows.jsonl")
    check_rewards(rows)
    if importlib.util.find_spec("trl") is None:
        print("skipped: TRL is not installed, GRPO itself was not tested (pip install trl)")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = tiny_run(rows)
        check_prompts(run)
        check_training(run)
        os.chdir(ROOT)
    print("rewards, prompts and two steps of GRPO are as they should be")


if __name__ == "__main__":
    main()
