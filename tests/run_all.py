"""Run every test of the project: lint, layers, each notebook, each command, the data sets, the wheel, the page.

    python tests/run_all.py            # what `make test` does
    python tests/run_all.py --fast     # without the cells that need the real base model
    python tests/run_all.py nbs/engine commands        # only the jobs whose names contain one of these words

Two jobs run at a time, the longest first (by `SECONDS`, measured on two cores), one PyTorch thread each. What is drawn
here, and how to run all of it, is listed in CONTRIBUTING.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ENV = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "TOKENIZERS_PARALLELISM": "false",
}
SECONDS: dict[str, float] = json.loads(
    (Path(__file__).parent / "seconds.json").read_text()
)  # of each job; new jobs first
SCRIPTS = {  # what a job runs in forks, if it is no notebook and no script of the job's name
    "fuzz": ("tests/fuzz_schemas.py", "tests/fuzz_questions.py", "tests/fuzz_grounding.py"),
    "app_page": ("tests/page.py",),
    "page": (),
}


def run(*command, cwd: Path = ROOT, **env) -> tuple[int, str]:
    "Return (exit code, output) of a command."
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env={**ENV, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def python(*arguments, **kwargs) -> tuple[int, str]:
    "Return (exit code, output) of this environment's Python."
    return run(sys.executable, *arguments, **kwargs)


def failed(result: tuple[int, str], keep: int = 3000) -> str | None:
    "Return the end of the output of a command that failed, or None."
    code, output = result
    return output[-keep:] or f"exit code {code}" if code else None


def lint() -> str | None:
    "Check format and lint rules of notebooks, scripts and tests."
    return failed(run(BIN / "ruff", "format", "--check", ".")) or failed(run(BIN / "ruff", "check", "."))


def architecture() -> str | None:
    "Check layers, names, prose and sizes."
    return failed(python("tests/architecture.py"))


def drift() -> str | None:
    "Clean and export the notebooks in a clone; report what differs."
    if run("git", "rev-parse", "HEAD")[0]:
        return "this is no git checkout: the drift check needs one"
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "copy"
        run("git", "clone", "--quiet", ROOT, copy)
        for command in ("nbdev_clean", "nbdev_export"):
            if problem := failed(run(BIN / command, cwd=copy), 800):
                return f"{command} failed: {problem}"
        changed = run("git", "status", "--porcelain", cwd=copy)[1].strip()
    how = "notebooks and package differ; run nbdev_clean and nbdev_export, then commit"
    return f"{how}:\n{changed}" if changed else None


class Forks:
    "Hold the process of `notebook_forks.py`, in whose forks notebooks and scripts are run."

    def __init__(self):
        self.process, self.lock, self.ended, self.cpu = None, threading.Lock(), {}, {}

    def start(self) -> None:
        "Start the process unless it runs."
        with self.lock:
            if self.process is None:
                command, pipe = [sys.executable, str(ROOT / "tests/notebook_forks.py")], subprocess.PIPE
                self.process = subprocess.Popen(command, cwd=ROOT, env=ENV, text=True, stdin=pipe, stdout=pipe)
                threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        "Hand out the exit codes of jobs, and 1 for all of them once the process ends."
        for line in self.process.stdout:
            job, code, self.cpu[job] = line.rsplit(maxsplit=2)
            self.ended[job].put(int(code))
        for waiting in self.ended.values():
            waiting.put(1)

    def run(self, path: Path, flags: str = "", **env: str) -> tuple[int, str]:
        "Return (exit code, output) of a notebook's tests or of a script."
        self.start()
        job = str(path.relative_to(ROOT))
        with tempfile.NamedTemporaryFile("r") as log:
            self.ended[job] = queue.SimpleQueue()
            row = {"id": job, "path": str(path), "flags": flags, "env": env, "log": log.name}
            with self.lock:
                self.process.stdin.write(json.dumps(row) + "\n")
                self.process.stdin.flush()
            return self.ended[job].get(), log.read() or "no output; has notebook_forks.py ended?"

    def close(self) -> None:
        "End the process."
        if self.process:
            self.process.stdin.close()
            self.process.wait()


FORKS = Forks()


def notebook(path: Path, slow: bool) -> str | None:
    "Run the tests of one notebook; repeat what it says that it could not test."
    code, output = FORKS.run(path, "slow" if slow else "", POCKETGUIDE_SLOW="1" if slow else "0")
    for line in output.splitlines():
        if line.startswith("NOT TESTED"):
            print(f"{path.name}: {line}", flush=True)
    return failed((code, output))


def dataset() -> str | None:
    "Draw a seeded share of data set v6 again and compare its hashes; `make verify-data` rebuilds v3 and v6 whole."
    return failed(FORKS.run(ROOT / "tests/dataset.py"))


def wheel() -> str | None:
    "Install the built wheel outside the repository and find its schemas, rules and list of places."
    with tempfile.TemporaryDirectory() as tmp:
        built = python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp, ROOT)
        wheels = list(Path(tmp).glob("*.whl"))
        if built[0] or not wheels:
            return built[1][-2000:]
        site = Path(tmp) / "site"
        install = python("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *wheels)
        probe = f"""
import pocketguide
from pocketguide.travel import contract
from pocketguide.travel.constraints import read_constraints
from pocketguide.travel.places import find_place
assert pocketguide.__file__.startswith({str(site)!r}), pocketguide.__file__
assert all(contract.load_schema(name) for name in ('envelope', *contract.PAYLOAD_TYPES))
assert contract.check('').category == 'empty' and read_constraints('vegan')
assert find_place('3 days in Lisbon').facts.features
"""
        return failed(install) or failed(python("-c", probe, cwd=tmp, PYTHONPATH=str(site)))


def lab() -> str | None:
    "Check every notebook's switch, and that the kernel of JupyterLab is this environment's Python."
    probe = """
import nbformat, sys
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
nb = new_notebook(cells=[new_code_cell('import sys, pocketguide; print(sys.executable)')])
NotebookClient(nb, kernel_name='python3').execute()
assert nb.cells[0].outputs[0].text.strip() == sys.executable, nb.cells[0].outputs
"""
    return failed(python("tools/run_notebooks.py", "--check")) or failed(python("-c", probe))


def page() -> str | None:
    "Look at the portfolio page in headless Chromium, light and dark, narrow and wide; says so if there is no Chromium."
    code, output = python("tests/portfolio_page.py")
    if not code and "skipped" in output:
        print(output.strip())
    return failed((code, output))


def app_page() -> str | None:
    "Ask on the page in headless Chromium, with a tiny model; says so if there is no Chromium or Gradio."
    code, output = FORKS.run(ROOT / "tests/page.py")
    if not code and "skipped" in output:
        print(output.strip())
    return failed((code, output))


def commands() -> str | None:
    "Run every command once in a process of its own."
    return failed(FORKS.run(ROOT / "tests/commands.py"))


def readme() -> str | None:
    "Check that README's commands, files, links and names are there, and its first screen."
    return failed(FORKS.run(ROOT / "tests/readme.py"))


def examples() -> str | None:
    "Check the example of a guide, and say again how often the fields of the example's bug reports are right."
    lint = python("-m", "pocketguide.travel.own_guide", "examples/hotel_guide", "--lint")
    return failed(lint) or failed(python("examples/bug_reports/fields.py"))


def grpo() -> str | None:
    "Tune a tiny model of the bug reports by GRPO; says so if TRL is not installed."
    code, output = FORKS.run(ROOT / "tests/grpo.py")
    if not code and "skipped" in output:
        print(output.strip().splitlines()[-1])
    return failed((code, output))


def broken_inputs() -> str | None:
    "Give the commands broken schemas, rows and servers; says so if the package openai is not installed."
    code, output = FORKS.run(ROOT / "tests/broken_inputs.py")
    if not code and "skipped" in output:
        print(output.strip().splitlines()[0])
    return failed((code, output))


def llama_server() -> str | None:
    "Ask llama-cpp-python's server; says so if it is not installed."
    code, output = FORKS.run(ROOT / "tests/llama_server.py")
    if not code:
        print(output.strip())
    return failed((code, output))


def fuzz() -> str | None:
    "Put random schemas, texts and questions through all that reads them, and walk through the grammars of answers."
    scripts = [ROOT / f"tests/fuzz_{what}.py" for what in ("schemas", "questions", "grounding")]
    return next(filter(None, (failed(FORKS.run(script)) for script in scripts)), None)


def jobs(slow: bool) -> dict[str, Callable[[], str | None]]:
    "Return every job by name."
    found = [p for folder in ("nbs", "examples") for p in sorted((ROOT / folder).rglob("*.ipynb"))]
    notebooks = [p for p in found if ".ipynb_checkpoints" not in p.parts]
    named = {str(p.relative_to(ROOT)): lambda p=p: notebook(p, slow) for p in notebooks}
    checks = (
        lint,
        architecture,
        drift,
        dataset,
        commands,
        readme,
        examples,
        grpo,
        fuzz,
        broken_inputs,
        wheel,
        lab,
        page,
        app_page,
    )
    real = (llama_server,) if slow else ()
    return named | {check.__name__: check for check in (*checks, *real)}


def timed(name: str, job: Callable[[], str | None]) -> tuple[str, str | None, float]:
    "Run a job, print a line, and return its name, its problem and its seconds."
    began = time.perf_counter()
    problem = job()
    seconds = time.perf_counter() - began
    paths = SCRIPTS.get(name, (name, f"tests/{name}.py"))
    used = [float(FORKS.cpu[path]) for path in paths if path in FORKS.cpu]
    cpu = f"  ({sum(used):.1f} s of a CPU)" if used else ""
    print(f"{'FAILED' if problem else 'ok':6} {seconds:6.1f} s  {name}{cpu}", flush=True)
    return name, problem, seconds


def main() -> int:
    "Run the jobs and print what failed."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", help="run only jobs whose name contains one of these words")
    parser.add_argument("--fast", action="store_true", help="leave out the cells that need the real base model")
    parser.add_argument("--measure", action="store_true", help="write the seconds of the jobs into tests/seconds.json")
    a = parser.parse_args()
    chosen = {n: job for n, job in jobs(not a.fast).items() if not a.only or any(word in n for word in a.only)}
    order = sorted(chosen, key=lambda name: -SECONDS.get(name, 1e9))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: timed(name, chosen[name]), order))
    FORKS.close()
    problems = {name: problem for name, problem, _ in results if problem}
    for name, problem in problems.items():
        print(f"\n--- {name}\n{problem}")
    if a.measure:
        seconds = SECONDS | {name: round(took, 1) for name, _, took in results}
        text = json.dumps(dict(sorted(seconds.items())), indent=1)
        (Path(__file__).parent / "seconds.json").write_text(text + "\n")
    print(f"\n{len(results) - len(problems)} passed, {len(problems)} failed")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
