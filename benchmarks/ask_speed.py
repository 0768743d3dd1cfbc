"""How long a traveller waits for the first token of an answer.

    python benchmarks/ask_speed.py                     # the best published run, ten hand-written questions

Writes benchmarks/results/ask_speed_<cuda|cpu>.json: seconds from a question to its first token with the model loaded (the first question, which also reads the tables of places, apart), and seconds of a
whole `python -m pocketguide.ship.ask --max_new_tokens 1`, from the start of its process to its end, which comes right after the first token: each loading the model, asking one that `--keep` left behind, and where
llama.cpp is installed loading the run's q8_0 file (`--gguf auto`). The base model must be in the cache.
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


def whole_command(question: str, run: Path, *argv: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pocketguide.ship.ask", "--max_new_tokens", "1", "--run_dir", run, *argv, question],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 3:  # one token is no valid answer
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - began


def first_token(guide: Guide, question: str) -> float:
    try:
        guide.ask(question)
    except NoValidAnswer:
        pass
    return guide.last.first_token_s


def summary(seconds: list[float]) -> dict:
    return {
        "n": len(seconds),
        "median": round(statistics.median(seconds), 2),
        "least": round(min(seconds), 2),
        "most": round(max(seconds), 2),
        "all": [round(s, 3) for s in seconds],
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--run_dir", help="a run directory; the best published run if left out")
    p.add_argument("--questions", type=int, default=10, help="how many, evenly spaced in natural40_v1")
    p.add_argument("--commands", type=int, default=3, help="how many of them are asked by a command of their own too")
    a = p.parse_args()
    suite = read_jsonl(ROOT / "eval/suites/natural40_v1.jsonl")
    questions = [suite[i * len(suite) // a.questions]["prompt"] for i in range(a.questions)]
    busy, run = os.getloadavg()[0], chosen_run(a.run_dir).path
    gguf = (
        [whole_command(q, run, "--gguf", "auto") for q in [questions[0], *questions]][1:]
        if importlib.util.find_spec("llama_cpp")
        else []
    )  # the first may write the file, and reads the beginnings of prompts
    began = time.perf_counter()
    guide = Guide(run, max_new_tokens=1)
    import torch

    loaded = time.perf_counter() - began
    device, about = (
        guide.model.engine.device.type,
        {
            "dtype": str(guide.model.engine.model.dtype).removeprefix("torch."),
            "run": guide.run.run_id,
            "shown": str(guide.shown),
            "constrained": guide.model.constrained,
        },
    )
    waits = [first_token(guide, q) for q in questions]
    del guide  # its memory
    commands = [whole_command(q, run) for q in questions[: a.commands]]
    keeping = whole_command(questions[0], run, "--keep", "5")
    time.sleep(10)  # the tables of places are read after the first answer
    kept = [whole_command(q, run) for q in questions[1:]]
    subprocess.run([sys.executable, "-m", "pocketguide.ship.ask", "--forget"], check=True)
    write_json(
        ROOT / f"benchmarks/results/ask_speed_{device}.json",
        {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            **about,
            "load_s": round(loaded, 2),
            "first_question_s": round(waits[0], 2),
            "first_token_s": summary(waits[1:]),
            "command_s": summary(commands),
            "keeping_command_s": round(keeping, 2),
            "kept_command_s": summary(kept),
            **({"gguf_command_s": {"file": "q8_0", **summary(gguf)}} if gguf else {}),
            "load_average_before": round(busy, 1),
            "git_commit": git_commit(),
            "versions": versions(),
        },
    )
    print(
        f"model loaded in {loaded:.1f} s; first question {waits[0]:.2f} s, the others {statistics.median(waits[1:]):.2f} s (median of {len(waits) - 1}); whole command to the first token {statistics.median(commands):.1f} s (median of {len(commands)}), "
        f"{statistics.median(kept):.2f} s where the model was kept (median of {len(kept)})"
        + (
            f", {statistics.median(gguf):.2f} s through llama.cpp (median of {len(gguf)}, at most {max(gguf):.2f})"
            if gguf
            else ""
        )
    )


if __name__ == "__main__":
    main()
