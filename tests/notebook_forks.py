"""Test notebooks in forks of one process, which has imported PyTorch and what is built on it once.

Every line of standard input is a job in JSON, `{"path": ..., "flags": ..., "env": {...}, "log": ...}`. The notebook is
tested by `nbdev_test` in a fork, its output goes into the file `log`, and its exit code is printed. The imports take
eight seconds of a CPU, some thirty times in `make test`.
"""

import importlib
import json
import os
import sys
import warnings

HEAVY = ("torch", "transformers", "peft", "accelerate", "matplotlib.pyplot", "pocketguide.train.train")


def test_notebook(path: str, flags: str, env: dict[str, str], log: str) -> None:
    "Test one notebook and end the process with its exit code."
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(env)
    code = 1
    try:
        from nbdev.test import nbdev_test

        nbdev_test(path=path, flags=flags, n_workers=0)
        code = 0
    except SystemExit as e:
        code = int(bool(e.code))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    "Fork for one job after the other."
    with warnings.catch_warnings(action="ignore"):
        for module in HEAVY:
            importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            test_notebook(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
