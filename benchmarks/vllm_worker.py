"""Answer prompts by vLLM for against_vllm.py: python benchmarks/vllm_worker.py JOB.

Imports nothing of this project, so that a cold start is vLLM's own. JOB is a JSON file with `engine` (arguments of
`LLM`), `prompts` (a file: lists of token ids by name), `ends` (token ids that end a turn), `schema`, `cases`, `began`
and `out`. Each case becomes a row of `out`, which is written after every case. Before a timed call the cache of
prefixes is emptied: the prompts of the warm-up call are the same.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def read_job() -> dict:
    "Return the job that the command line names, with its prompts."
    job = json.loads(Path(sys.argv[-1]).read_text())
    return {**job, "prompts": json.loads(Path(job["prompts"]).read_text())} if job.get("prompts") else job


def write_rows(job: dict, rows: list[dict], **facts) -> None:
    "Write what is known so far; the file is whole at any time."
    part = Path(f"{job['out']}.part")
    part.write_text(json.dumps({"rows": rows, **facts}))
    part.replace(job["out"])


def timed(work, warm: bool, between=lambda: None):
    "Return the result of `work()` and its seconds, of a second call if `warm`; `between` is called before each."
    seconds = []
    for _ in range(1 + warm):
        between()
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return result, {"first_call_s": round(seconds[0], 3), "wall_s": round(seconds[-1], 3)}


def row_of(case: dict, answers: list[list[int]], finish: list[str], tokens: int, times: dict, **facts) -> dict:
    "Return the row of one case; `tokens` counts the ends of turns too, `answers` are without them."
    speed = {"tokens": tokens, "tokens_per_s": round(tokens / max(times["wall_s"], 0.001), 1)}
    stopped = {reason: finish.count(reason) for reason in sorted(set(finish))}
    named = {key: case[key] for key in ("case", "prompts", "batch_size") if key in case}
    return {**named, **times, **speed, "finish": stopped, **facts, "answers": answers, "finish_reasons": finish}


def gpu_memory_used_mb() -> int | None:
    "Return the used memory of the first GPU as nvidia-smi says it: vLLM reserves a share of the GPU at its start."
    try:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def answer_case(llm, job: dict, case: dict) -> dict:
    "Answer the prompts of one case; returns its row."
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    ends = job.get("ends", ())
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"][case["of"]][: case["prompts"]]]
    how = {"ignore_eos": True} if case.get("endless") else {"stop_token_ids": ends}
    if case["case"] == "contract":
        how["structured_outputs"] = StructuredOutputsParams(json=job["schema"])
    params = SamplingParams(temperature=0.0, max_tokens=case["max_tokens"], **how)
    work = lambda: llm.generate(prompts, params, use_tqdm=False)
    done, times = timed(work, case["warm"], llm.reset_prefix_cache)
    outputs = [request.outputs[0] for request in done]
    ids = [list(output.token_ids) for output in outputs]
    answers = [i[:-1] if i and i[-1] in ends and not case.get("endless") else i for i in ids]
    finish = ["eos" if output.finish_reason == "stop" else output.finish_reason for output in outputs]
    return row_of(case, answers, finish, sum(map(len, ids)), times, gpu_memory_used_mb=gpu_memory_used_mb())


def main():
    job = read_job()
    import vllm  # only now: reading the job takes no time that is vLLM's

    llm = vllm.LLM(**job["engine"])
    rows, facts = [], {"start_s": round(time.time() - job["began"], 2), "version": vllm.__version__}
    for case in job["cases"]:
        try:
            rows.append(answer_case(llm, job, case))
        except Exception as e:
            rows.append({"case": case["case"], "prompts": case["prompts"], "error": f"{type(e).__name__}: {e}"[:400]})
        if case["case"] == "cold" and "error" not in rows[-1]:
            facts["cold_s"] = round(time.time() - job["began"], 2)
        write_rows(job, rows, **facts)
    sys.stdout.flush()
    os._exit(0)  # without waiting for vLLM's own processes: the caller ends all of its group


if __name__ == "__main__":  # vLLM's own processes import this file again
    main()
