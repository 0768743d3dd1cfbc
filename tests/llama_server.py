"""Ask a real server of another make, llama-cpp-python's, with the best published run as a file in 8 bits.

    python tests/llama_server.py

The server is started on a free port. `run_samples` asks it free and held to a schema, `teach` lets it draft rows; what
it answers free is compared with what `LlamaCpp` answers from the same file. A minute or two on two cores. Skipped, in a
printed line, if llama-cpp-python, what its server needs, or the package openai is not installed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pocketguide import teach
from pocketguide.contract.task import Task, load_schema_task, run_task
from pocketguide.core.files import read_jsonl, write_jsonl
from pocketguide.core.runs import Run, open_run
from pocketguide.engine.llama import LlamaCpp
from pocketguide.engine.prompts import build_prompts
from pocketguide.engine.remote import Endpoint, EndpointError
from pocketguide.ship import export
from pocketguide.train import run_samples

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {
    "llama_cpp": "llama-cpp-python[server]",
    "sse_starlette": "llama-cpp-python[server]",
    "pydantic_settings": "llama-cpp-python[server]",
    "openai": "openai",
    "llguidance": "llguidance",
}
SCHEMA = ROOT / "eval/other/bug_report.schema.json"
# Else the server would punish repetitions, which JSON is full of
GREEDY = json.dumps({"repeat_penalty": 1})
PLAN = f"""
name: bugs
task: {{schema: {SCHEMA}}}
message: Write one sentence in which a user of an office program complains about {{topic}}. {{register}} {{constraint}}
topics: [printing, search, login]
registers: [Be brief., Be angry.]
constraints: [Use plain words.]
message_tokens: 40
rows: 2
critic: Does every value of the report follow from the message?
"""


@contextlib.contextmanager
def llama_server(file: Path, log: Path) -> Iterator[Endpoint]:
    "Let llama-cpp-python's server answer with a GGUF file."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [
        "--model",
        file,
        "--model_alias",
        "guide",
        "--port",
        port,
        "--n_ctx",
        2048,
        "--interrupt_requests",
        "false",
    ]
    words = [sys.executable, "-m", "llama_cpp.server", *map(str, named)]
    with open(log, "w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1")
        while not endpoint.models:  # until it has loaded the file
            assert process.poll() is None, log.read_text()[-1000:]
            with contextlib.suppress(EndpointError):
                endpoint.check()
            time.sleep(0.3)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def asked(endpoint: Endpoint, suite: str, limit: int, out: str, *more) -> list[dict]:
    "Return the rows that `run_samples` writes of the server's answers, of `limit` tokens at most."
    began = time.perf_counter()
    where = ["--endpoint", endpoint.url, "--model", "guide", "--concurrency", "1", "--extra_body", GREEDY]
    words = [*where, "--prompts", suite, "--out", out, "--max_new_tokens", limit, *more, "--quiet"]
    run_samples.main([*map(str, words)])
    (metrics,) = Path(out).rglob("comparison_metrics.json")
    rows = read_jsonl(metrics.parent / "finetuned_outputs.jsonl")
    valid, ended = sum(r["schema_valid"] for r in rows), sum(r["finish_reason"] == "eos" for r in rows)
    seconds = time.perf_counter() - began
    print(f"{out}: {len(rows)} answers, {ended} ended by themselves, {valid} valid, {seconds:.0f} s", flush=True)
    return rows


def own_answers(task: Task, options, file: Path, questions: list[dict], limit: int) -> list[tuple[str, bool]]:
    "Return (answer, valid) by `LlamaCpp` from the same file, which the server's own stops do not end."
    engine = LlamaCpp(file, limit, stop_on_loop=False)
    engine.stop_on_json = False
    prompts = build_prompts(task, engine, questions, options)
    completions = engine.generate([prompt.token_ids for prompt in prompts])
    rated = [(engine.text(c), q, c.finish_reason) for c, q in zip(completions, questions)]
    return [(text, task.judge(text, q, reason).schema_valid) for text, q, reason in rated]


def check_free(run: Run, file: Path, endpoint: Endpoint) -> None:
    """Compare the server's free answers with our own: to questions of a schema, and to those of the run's task, whose
    prompts show what the model recognised (the server writes it, our engine compares likelihoods)."""
    bugs, trips = load_schema_task(SCHEMA), run_task(run)
    for suite, task, options, limit, how in (
        ("bugs.jsonl", bugs, bugs.prompt_options(run.config), 60, ["--schema", SCHEMA]),
        ("trips.jsonl", trips, trips.prompt_options(run.config), 640, ["--run_dir", run.path]),
    ):
        rows = asked(endpoint, suite, limit, f"free {suite[:5].strip('.')}", *how)
        own = own_answers(task, options, file, read_jsonl(suite), limit)
        same = sum(row["raw_text_output"] == text for row, (text, _) in zip(rows, own))
        verdicts = sum(row["schema_valid"] == valid for row, (_, valid) in zip(rows, own))
        print(
            f"of {len(rows)} answers {same} are LlamaCpp's own to the letter, {verdicts} have its verdict", flush=True
        )
        assert verdicts == len(rows) and (task is trips or same == len(rows)), (own, rows)


def check_held(endpoint: Endpoint) -> None:
    "Hold the server to a schema: what ends by itself fits it."
    rows = asked(endpoint, "bugs.jsonl", 320, "held", "--schema", SCHEMA, "--constrained")
    task = load_schema_task(SCHEMA)
    ended = [row for row in rows if row["finish_reason"] == "eos"]
    assert all(row["raw_text_output"].lstrip().startswith("{") for row in rows), rows
    assert ended and all(task.judge(row["raw_text_output"], {}, "eos").schema_valid for row in ended), rows


def check_drafts(endpoint: Endpoint) -> None:
    "Let the server draft rows; the second time nothing is asked."
    Path("plan.yaml").write_text(PLAN)
    where = ["--plan", "plan.yaml", "--out", "drafts", "--endpoint", endpoint.url, "--model", "guide"]
    words = [*where, "--concurrency", "1", "--extra_body", GREEDY, "--yes", "--quiet"]
    teach.main(words)
    requests = len(read_jsonl("drafts/requests.jsonl"))
    teach.main(words[:-2] + ["--quiet"])  # nothing is left to ask for, so nobody has to agree
    assert len(read_jsonl("drafts/requests.jsonl")) == requests
    report = json.loads(Path("drafts/report.json").read_text())
    assert report["drafts"] == 2 == report["kept"] + sum(report["rejected"].values()), report


def main() -> None:
    "Start the server and ask it."
    if lacking := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        print(f"skipped: no server of llama.cpp was asked, {lacking[0]} is not installed (pip install '{lacking[0]}')")
        return
    run = open_run(sorted((ROOT / "runs/train").glob("*-v6"))[-1])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_jsonl("bugs.jsonl", read_jsonl(ROOT / "eval/other/bug_messages_v1.jsonl")[:2])
        write_jsonl("trips.jsonl", read_jsonl(ROOT / "eval/suites/fixed20_v1.jsonl")[:1])
        export.main(["--run_dir", str(run.path), "--to", "gguf", "--out", "model"])
        (file,) = Path("model").rglob("*.gguf")
        with llama_server(file, Path("server.log")) as endpoint:
            check_free(run, file, endpoint)
            check_held(endpoint)
            check_drafts(endpoint)
        os.chdir(ROOT)


if __name__ == "__main__":
    sys.exit(main())
