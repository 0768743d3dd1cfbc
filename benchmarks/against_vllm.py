"""Measure the engine beside vLLM: same model, same token ids, greedy; one process after another, on one GPU.

    pip install vllm==0.26.0 --target FOLDER        # or anything else that makes FOLDER importable as vLLM
    python benchmarks/against_vllm.py --vllm_site FOLDER

Writes benchmarks/results/against_vllm.json after every process and prints the ratios last: time of vLLM over ours.
Cases: `cold` (from the start of a process to 200 answers: here what run_samples does for the fine-tuned model,
questions read and judged; for vLLM the same prompts as token ids, made before), `free` and `contract` (warm),
`grounded` (here alone, over free), `7b` (Llama-2-7B's shape with random weights, ends ignored), `again` (cold once more
with the files that vLLM compiled before). An answer has at most 1,024 tokens. The engine has its defaults, among them
the stop in loops, and batch_size auto. vLLM's used memory is what it reserves. A process that fails or takes longer
than --timeout leaves an error. --folder keeps the prompts: with them in place the 2,000 questions are not drawn again.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import LLAMA_2_7B, folded

from pocketguide.contract.task import run_task
from pocketguide.core.files import read_json, write_json
from pocketguide.core.runs import git_commit, open_run, versions
from pocketguide.core.stats import markdown_table
from pocketguide.engine.models import load_tokenizer

CASES = ("cold", "free", "contract", "grounded", "7b", "again")
TINY = {**LLAMA_2_7B, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY["num_key_value_heads"] = 4
VLLM = {"dtype": "bfloat16", "max_model_len": 3072, "gpu_memory_utilization": 0.6, "max_num_seqs": 512}
VLLM_ENV = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def specs(case: str, sizes: list[int], of: str, tokens: int, **how) -> list[dict]:
    "Return the cases of several numbers of prompts."
    return [{"case": case, "prompts": n, "of": of, "max_tokens": tokens, "warm": True, **how} for n in sizes]


def plan_135m(a, cases) -> list[dict]:
    "Return the cases with the 135M model that both engines answer, the most telling first."
    full, rest = a.sizes["suite"], a.sizes["some"]
    free = specs("free", [full, *rest], "suite", a.tokens)
    many = specs("free", [a.sizes["many"]], "many", a.tokens, warm=False)
    contract = specs("contract", [full], "suite", a.tokens)
    return [
        *(free if "free" in cases else ()),
        *(contract if "contract" in cases else ()),
        *(many if "free" in cases else ()),
    ]


def plan(a) -> list[tuple[str, dict]]:
    "Return (process, job) in the order in which they run, the most telling first."
    full, folder, asked = a.sizes["suite"], a.folder, set(a.cases)
    cold = specs("cold", [full], "suite", a.tokens, warm=False)
    prompts, served = str(folder / "prompts.json"), {**VLLM, "structured_outputs_config": {"backend": "guidance"}}
    vllm = {"engine": {"model": str(folder / "merged"), **served}, "prompts": prompts, "schema": a.schema}
    vllm |= read_json(folder / "ends.json")
    own = specs("grounded", [full], "suite", a.tokens) if "grounded" in asked else []
    own += specs("free", [full], "suite", a.tokens, batch_size=a.sizes["batch"]) if "free" in asked else []
    shape = {"model": str(folder / "7b"), **VLLM, "load_format": "dummy", "skip_tokenizer_init": True}
    seven = {"prompts": str(folder / "prompts_7b.json"), "shape": a.shape}
    seven["cases"] = specs("7b", [*a.sizes["some"], full], "suite", a.tokens_7b, endless=True)
    steps = [
        ("vllm_135m", {**vllm, "cases": cold + plan_135m(a, asked)}, {"cold", "free", "contract"}),
        ("ours_cold", {"suite": str(folder / "suite.jsonl")}, {"cold", "again"}),
        ("ours_135m", {"prompts": prompts, "cases": plan_135m(a, asked) + own}, {"free", "contract", "grounded"}),
        ("vllm_7b", {**seven, "engine": shape}, {"7b"}),
        ("ours_7b", seven, {"7b"}),
        ("vllm_again", {**vllm, "cases": cold}, {"again"}),
    ]
    return [(name, job) for name, job, needs in steps if needs & asked]


def run_process(name: str, job: dict, a) -> dict:
    "Run one process and return what it wrote, with its seconds, and an error if it failed; ends all that it started."
    out, log = a.folder / f"{name}.out.json", a.folder / f"{name}.log"
    out.unlink(missing_ok=True)
    common = {"folder": str(a.folder), "run_dir": str(a.run_dir), "max_tokens": a.tokens, "out": str(out)}
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    paths = [path for path in paths if Path(path).resolve() != a.vllm_site]
    script, env = "engine_worker.py", {**os.environ}
    if name.startswith("vllm"):
        script, env, paths = "vllm_worker.py", {**env, **VLLM_ENV}, [str(a.vllm_site or ROOT), *paths]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    began = time.time()
    write_json(a.folder / f"{name}.job.json", {"kind": name, **common, **job, "began": began})
    with log.open("w") as told:
        how = {"cwd": ROOT, "env": env, "stdout": told, "stderr": subprocess.STDOUT, "start_new_session": True}
        command = [sys.executable, str(Path(__file__).with_name(script)), str(a.folder / f"{name}.job.json")]
        process, error = subprocess.Popen(command, **how), None
        try:
            code = process.wait(a.timeout)
            error = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"stopped after {a.timeout} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(out.read_text()) if out.exists() else {"rows": []}
    found["process_s"] = round(time.time() - began, 2)
    if error:
        print(log.read_text(errors="replace")[-4000:], flush=True)
        found["error"] = f"{error}: {log.read_text(errors='replace')[-300:]}"
    return found


def judged(row: dict, questions: list[dict], task, tokenizer) -> list[bool]:
    "Return which answers of a row fit the contract."
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    answers = zip(row["answers"], row["finish_reasons"], questions)
    return [task.judge_safely(decode(ids), question, finish).schema_valid for ids, finish, question in answers]


def key_of(row: dict) -> tuple:
    return row["case"], row["prompts"], row.get("batch_size")


def joined(key: tuple, sides: dict[str, dict], questions: list[dict], task, tokenizer) -> dict:
    "Return one case with the rows of both sides, their ratio, and how many answers and verdicts differ."
    case, prompts, batch = key
    both = sorted(side for side, row in sides.items() if "answers" in row)
    verdicts = {}
    for side in both if case != "7b" else ():
        row = sides[side]
        verdicts[side] = row["verdicts"] = row.get("verdicts") or judged(row, questions, task, tokenizer)
        row["schema_valid"] = sum(verdicts[side])
    out = {"case": case, "prompts": prompts, **({"batch_size": batch} if batch else {})}
    if len(both) == 2:
        ours, vllm = (sides[side] for side in both)
        out["time_of_vllm_over_ours"] = round(vllm["wall_s"] / ours["wall_s"], 3)
        out["tokens_per_s_over_vllm"] = round(ours["tokens_per_s"] / vllm["tokens_per_s"], 3)
    if len(verdicts) == 2:
        out["answers_differ"] = sum(a != b for a, b in zip(ours["answers"], vllm["answers"]))
        out["verdicts_differ"] = sum(a != b for a, b in zip(*verdicts.values()))
    return out | {s: {k: v for k, v in row.items() if k not in _LONG} for s, row in sides.items()}


_LONG = ("answers", "finish_reasons", "verdicts", "case", "prompts", "batch_size")


def add_over_free(rows: list[dict]) -> None:
    "Add to grounded rows their tokens per second over those of free answers to as many prompts."
    ours = {key_of(row): row["ours"]["tokens_per_s"] for row in rows if "tokens_per_s" in row.get("ours", {})}
    for row in rows:
        grounded, free = ours.get(key_of(row)), ours.get(("free", row["prompts"], None))
        if row["case"] == "grounded" and grounded and free:
            row["tokens_per_s_over_free"] = round(grounded / free, 3)


def join(found: dict[str, dict], known: dict, task, tokenizer) -> list[dict]:
    "Return the cases of all processes so far, joined."
    cold = {name: each["cold_s"] for name, each in found.items() if "cold_s" in each}
    cases: dict[tuple, dict] = {}
    for name, each in found.items():
        for row in each["rows"]:
            if row["case"] != "cold":
                cases.setdefault(key_of(row), {})[name.split("_")[0]] = row
    questions = lambda key: known["questions"]["many" if key[1] == len(known["many"]) else "suite"]
    rows = [joined(key, sides, questions(key), task, tokenizer) for key, sides in cases.items()]
    add_over_free(rows)
    for case, vllm in (("cold", "vllm_135m"), ("again", "vllm_again")):
        if vllm in cold and "ours_cold" in cold:
            ratio = round(cold[vllm] / cold["ours_cold"], 3)
            rows.append({"case": case, "prompts": len(known["suite"]), "time_of_vllm_over_ours": ratio})
            rows[-1] |= {"vllm": {"wall_s": cold[vllm]}, "ours": {"wall_s": cold["ours_cold"]}}
    return rows


def write_shape(a, known: dict) -> None:
    "Write what vLLM needs to know of the 7B shape, and prompts folded into its vocabulary."
    config = LlamaConfig(
        **a.shape, eos_token_id=2, pad_token_id=2, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )
    config.save_pretrained(a.folder / "7b")
    ids = folded(known["suite"], a.shape["vocab_size"], len(known["suite"]))
    write_json(a.folder / "prompts_7b.json", {"suite": ids})


def prepared(a, run_id: str) -> tuple[dict, str | None]:
    "Return the prompts of all processes and the error of making them; those that are there for this run are kept."
    known = a.folder / "prompts.json"
    if known.exists():
        found = read_json(known)
        if (found["run"], found["sizes"]) != (run_id, a.sizes):
            known.unlink()
    job = {"suite": str(ROOT / "eval/suites/fixed200_v1.jsonl"), "sizes": a.sizes}
    error = run_process("prepare", job, a).get("error")
    return (read_json(known) if known.exists() else {}), error


def described(known: dict) -> dict:
    "Return what the result says of the prompts."
    lengths = {name: [*map(len, known[name])] for name in ("suite", "many")}
    facts = {
        name: {"n": len(n), "mean_tokens": round(sum(n) / len(n), 1), "most": max(n)} for name, n in lengths.items()
    }
    return {**facts, "source": "fixed200_v1, and questions of the project's own generator (data set v6)"}


def table(rows: list[dict]) -> str:
    "Return the ratios as a table."
    shown = []
    for row in rows:
        rate = {side: row.get(side, {}).get("tokens_per_s") for side in ("vllm", "ours")}
        seconds = {side: row.get(side, {}).get("wall_s", "error" if side in row else "") for side in ("vllm", "ours")}
        batch = f" (batch {row['batch_size']})" if "batch_size" in row else ""
        over_free = {"ours over free": row.get("tokens_per_s_over_free", "")}
        shown.append(
            {"case": row["case"] + batch, "prompts": row["prompts"]}
            | {f"{side}, s": value for side, value in seconds.items()}
            | {f"{side}, tok/s": value or "" for side, value in rate.items()}
            | {"time of vLLM / ours": row.get("time_of_vllm_over_ours", "")}
            | {key: row.get(key, "") for key in ("verdicts_differ", "answers_differ")}
            | over_free
        )
    return markdown_table(shown)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm_site", type=Path, help="a folder with vLLM, for its own processes only")
    parser.add_argument("--run_dir", type=Path, default=ROOT / "runs/train/20261130_172213-v6")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:-1], help="all but `again` if left out")
    parser.add_argument("--timeout", type=int, default=300, help="seconds of one process")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build/against_vllm", help="prompts, model and logs; kept"
    )
    parser.add_argument("--update", action="store_true", help="keep the cases of --out that are not measured now")
    parser.add_argument(
        "--quick", action="store_true", help="a rehearsal: few prompts, few tokens, a tiny second model"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/against_vllm.json")
    a = parser.parse_args()
    a.folder, a.run_dir = a.folder.resolve(), a.run_dir.resolve()
    a.vllm_site = a.vllm_site and a.vllm_site.resolve()
    a.sizes = {"suite": 200, "many": 2000, "some": [40, 20, 8], "batch": 40}
    a.tokens, a.tokens_7b, a.shape = 1024, 512, LLAMA_2_7B
    if a.quick:
        a.sizes, a.tokens, a.tokens_7b, a.shape = {"suite": 2, "many": 3, "some": [1], "batch": 1}, 8, 8, TINY
    return a


def main():
    a = arguments()
    a.folder.mkdir(parents=True, exist_ok=True)
    run = open_run(a.run_dir, adapter=True)
    task, tokenizer = run_task(run), load_tokenizer(run.config.base_model_id)
    old = read_json(a.out) if a.update and a.out.exists() else {}
    a.schema, before = task.schema, old.get("cases", [])
    result = {"run": run.run_id, "git_commit": git_commit(ROOT), "versions": versions(), "vllm_settings": VLLM}
    result |= {
        "max_new_tokens": {"135m": a.tokens, "7b": a.tokens_7b},
        "processes": old.get("processes", {}),
        "cases": before,
    }
    result |= {key: old[key] for key in ("device", "vllm_version") if key in old}
    known, error = prepared(a, run.run_id)
    if error:
        result["processes"]["prepare"] = {"error": error}
        write_json(a.out, result)
        sys.exit(error)
    write_shape(a, known)
    result["prompts"], found = described(known), {}
    for name, job in plan(a):
        print(f"{name} ...", flush=True)
        found[name] = run_process(name, job, a)
        facts = {key: value for key, value in found[name].items() if key != "rows"}
        result["processes"][name] = facts
        print(json.dumps(facts), flush=True)
        result |= {to: facts[key] for key, to in (("device", "device"), ("version", "vllm_version")) if key in facts}
        rows = join(found, known, task, tokenizer)
        new = {key_of(row) for row in rows}
        result["cases"] = [row for row in before if key_of(row) not in new] + rows
        write_json(a.out, result)
    print(table(result["cases"]))


if __name__ == "__main__":
    main()
