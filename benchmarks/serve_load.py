"""Load the server with many clients at once, and check that every answer is the one that its question gets alone.

    python benchmarks/serve_load.py                                 # 64 clients for a minute, a tiny model on the CPU
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --tokens 40      # a server that runs

Writes benchmarks/results/serve_load.json: requests, answers that were lost or another's, requests that were refused
(503), seconds of an answer, and the server's memory at every tenth of the time.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pocketguide.core.files import write_json
from pocketguide.core.runs import git_commit, versions
from pocketguide.engine.testing import make_tiny_base, make_tiny_run, start_child

SERVE = "import runpy; runpy.run_module('pocketguide.ship.serve', run_name='__main__', alter_sys=True)"
QUESTIONS = 40


def start(folder: Path) -> tuple[str, int]:
    "Start a server with a tiny model; return its address and process id."
    from pocketguide.core.config import Config, DataConfig

    run = make_tiny_run(Config("tiny", make_tiny_base(folder / "base"), data=DataConfig()), folder / "runs")
    options = ["--run_dir", run.path, "--port", "0", "--no_page", "--device", "cpu", "--dtype", "float32"]
    pid = start_child(SERVE, *options, "--decoding", "free", log=folder / "log")
    while "http://" not in (folder / "log").read_text():
        time.sleep(0.1)
    return (folder / "log").read_text().split(": ")[1].split(",")[0], pid


def ask(url: str, model: str, number: int, tokens: int) -> tuple[str, float]:
    "Return the answer to a question, streamed for every second one, and its seconds; a refusal's text is its status."
    stream, began = number % 2 == 0, time.perf_counter()
    body = {"model": model, "max_tokens": tokens, "stream": stream}
    body["messages"] = [{"role": "user", "content": f"question {number % QUESTIONS}"}]
    head = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)
        text = opener.open(request, timeout=300).read().decode()
    except urllib.error.HTTPError as e:
        return str(e.code), time.perf_counter() - began
    if stream:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        answer = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    else:
        answer = json.loads(text)["choices"][0]["message"]["content"]
    return answer, time.perf_counter() - began


opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def load(url: str, pid: int | None, clients: int, seconds: float, tokens: int) -> dict:
    "Ask with some clients for some seconds; return what came of it."
    model = json.load(opener.open(f"{url}/v1/models"))["data"][1]["id"]
    alone = [ask(url, model, i, tokens)[0] for i in range(QUESTIONS)]
    end, results, memory, lock = time.time() + seconds, [], [], threading.Lock()

    def client(first: int) -> None:
        number = first
        while time.time() < end:
            answer, took = ask(url, model, number, tokens)
            with lock:
                results.append((answer, alone[number % QUESTIONS], took))
            number += 7

    with ThreadPoolExecutor(clients) as pool:
        waiting = [pool.submit(client, i) for i in range(clients)]
        while time.time() < end:
            time.sleep(seconds / 10)
            memory += [round(psutil.Process(pid).memory_info().rss / 1e6)] if pid else []
        for done in waiting:
            done.result()
    times = sorted(took for _, _, took in results)
    return {
        "clients": clients,
        "seconds": seconds,
        "tokens": tokens,
        "different_answers": len(set(alone)),
        "requests": len(results),
        "wrong": sum(a != b and a != "503" for a, b, _ in results),
        "refused": sum(a == "503" for a, _, _ in results),
        "median_s": round(statistics.median(times), 2),
        "slowest_s": round(times[-1], 2),
        "memory_mb": memory,
    }


def main() -> None:
    "Run the load and write what came of it."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a server that runs; left out: one with a tiny model is started")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=16, help="of every answer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url, pid = (args.url, None) if args.url else start(Path(folder))
        found = load(url, pid, args.clients, args.seconds, args.tokens)
        if pid:
            psutil.Process(pid).terminate()
    found |= {"commit": git_commit(), "versions": versions(), "load_average": psutil.getloadavg()[0]}
    write_json(ROOT / "benchmarks/results/serve_load.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
