"""Measure how long a traveller waits for the first token of an answer, and for all of it.

    python benchmarks/ask_speed.py                     # the best published run, ten hand-written questions

Writes benchmarks/results/ask_speed_<cuda|cpu>.json: seconds from a question to its first and to its last token with the
model loaded (the first question, which also opens the tables of places, apart), and the seconds of a command `python -m
pocketguide.ship.ask --max_new_tokens 1`, which ends after the first token: loading PyTorch's model and, if llama.cpp is
installed, the run's q8_0 file (`--gguf auto`). The base model must be in the cache.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pocketguide.core.files import read_jsonl, write_json
from pocketguide.core.runs import git_commit, versions
from pocketguide.ship.guide import Guide, NoValidAnswer, chosen_run


def time_command(question: str, run: Path, *options: str) -> float:
    "Return the seconds of a whole command that writes one token."
    started = time.perf_counter()
    command = [sys.executable, "-m", "pocketguide.ship.ask", "--max_new_tokens", "1", "--run_dir", str(run)]
    done = subprocess.run([*command, *options, question], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 3:  # one token is no valid answer
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - started


def time_answer(guide: Guide, question: str) -> tuple[float, float]:
    "Return the seconds to the first token of an answer, and to its last."
    try:
        guide.ask(question)
    except NoValidAnswer:
        pass
    return guide.last.first_token_s, guide.last.seconds


def summarise(seconds: list[float]) -> dict:
    "Return n, median and range."
    return {
        "n": len(seconds),
        "median": round(statistics.median(seconds), 2),
        "least": round(min(seconds), 2),
        "most": round(max(seconds), 2),
        "all": [round(s, 3) for s in seconds],
    }


def time_gguf(questions: list[str], run: Path) -> dict:
    "Return the summary of commands that answer through llama.cpp; nothing if it is not installed."
    if not importlib.util.find_spec("llama_cpp"):
        return {}
    time_command(questions[0], run, "--gguf", "auto")  # may write the file, and caches the beginnings of prompts
    seconds = [time_command(question, run, "--gguf", "auto") for question in questions]
    return {"gguf_command_s": {"file": "q8_0", **summarise(seconds)}}


def measure(run: Path, questions: list[str], commands: int) -> dict:
    "Return everything that is measured."
    busy, gguf, started = os.getloadavg()[0], time_gguf(questions, run), time.perf_counter()
    guide = Guide(run)
    loaded = time.perf_counter() - started
    import torch

    model = guide.model.engine.model
    device = model.device.type
    waits = [time_answer(guide, question) for question in questions]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "run": guide.run.run_id,
        "shown": str(guide.options),
        "constrained": guide.model.constrained,
        "load_s": round(loaded, 2),
        "decoding": guide.decoding,
        "first_question_s": round(waits[0][0], 2),
        "first_token_s": summarise([first for first, _ in waits[1:]]),
        "answer_s": summarise([whole for _, whole in waits[1:]]),
        "command_s": summarise([time_command(question, run) for question in questions[:commands]]),
        **gguf,
        "load_average_before": round(busy, 1),
        "git_commit": git_commit(),
        "versions": versions(),
    }


def main() -> None:
    "Measure, write the file and print a line."
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--run_dir", help="a run directory; left out: the best published run")
    p.add_argument("--questions", type=int, default=10, help="how many, evenly spaced in natural40_v1")
    p.add_argument("--commands", type=int, default=3, help="how many of them are also asked by a command of their own")
    a = p.parse_args()
    suite = read_jsonl(ROOT / "eval/suites/natural40_v1.jsonl")
    questions = [suite[i * len(suite) // a.questions]["prompt"] for i in range(a.questions)]
    result = measure(chosen_run(a.run_dir).path, questions, a.commands)
    device = "cpu" if result["device"] == "cpu" else "cuda"
    write_json(ROOT / f"benchmarks/results/ask_speed_{device}.json", result)
    medians = {
        k: result[k]["median"] for k in ("first_token_s", "answer_s", "command_s", "gguf_command_s") if k in result
    }
    print(f"loaded in {result['load_s']} s; medians: {medians}")


if __name__ == "__main__":
    main()
