"""Run notebooks as JupyterLab's "Run All" does, and check their switches.

    python tools/run_notebooks.py                      # all notebooks in order, at most five minutes each
    python tools/run_notebooks.py --check              # look at the switches only
    python tools/run_notebooks.py nbs/ship/05_ask.ipynb --set POCKETGUIDE_LONG=1 --minutes 30
    python tools/run_notebooks.py --keep               # keep the outputs in the notebooks (`make notebooks`)

A notebook with cells marked slow, long or gpu has one visible cell near its top that begins with "# The switch" and
sets RUN_SLOW, RUN_LONG or RUN_GPU for every such mark; every marked cell asks them.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKS = {"slow": "RUN_SLOW", "long": "RUN_LONG", "gpu": "RUN_GPU"}
SWITCH_BEFORE = 7  # the number of the cell, in code cells, before which the switch is expected


def code_cells(path: Path) -> list[str]:
    "Return the sources of a notebook's code cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def switch_problems(path: Path) -> list[str]:
    "Return what is wrong with a notebook's switch."
    sources = code_cells(path)
    marked = [(MARKS[m[1]], s) for s in sources for m in re.finditer(r"^#\|\s*(slow|long|gpu)\s*$", s, re.M)]
    if not marked:
        return []
    switches = [i for i, source in enumerate(sources) if source.startswith("# The switch")]
    problems = [
        f"a marked cell does not ask {name}: {source.splitlines()[1][:60]}"
        for name, source in marked
        if not re.search(rf"\bif\b.*\b{name}\b", source)
    ]
    if len(switches) != 1:
        return [*problems, f"{len(switches)} cells begin with '# The switch', it needs one"]
    for name in sorted({name for name, _ in marked}):
        if not re.search(rf"^{name}\s*=", sources[switches[0]], re.M):
            problems.append(f"the switch does not set {name}")
    if switches[0] >= SWITCH_BEFORE:
        problems.append("the switch is too far down")
    return problems


def execute(path: Path, minutes: float, env: dict, keep: bool) -> tuple[float, str]:
    "Run a notebook in a kernel of its own. Returns (seconds, error or nothing)."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook, started = nbformat.read(path, 4), time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=60 * minutes,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute(env=env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return time.perf_counter() - started, str(error)[-1500:]
    if keep:
        nbformat.write(notebook, path)
    return time.perf_counter() - started, ""


def all_notebooks() -> list[Path]:
    "Return every notebook, in reading order: by layer, then by number."
    folders = ("core", "contract", "engine", "travel", "", "train", "ship")
    found = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    return sorted(found, key=lambda p: (folders.index("/".join(p.relative_to(ROOT / "nbs").parts[:-1])), p.name))


def main() -> int:
    "Check the switches and run the notebooks."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="left out: all of nbs/")
    parser.add_argument("--check", action="store_true", help="look at the switches only")
    parser.add_argument("--keep", action="store_true", help="keep the outputs in the notebooks")
    parser.add_argument("--minutes", type=float, default=5, help="how long a notebook may take")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="environment of the kernels")
    a = parser.parse_args()
    notebooks = a.notebooks or all_notebooks()
    problems = [f"{path.name}: {problem}" for path in notebooks for problem in switch_problems(path)]
    env = {**os.environ, **dict(setting.split("=", 1) for setting in a.set)}
    for path in () if a.check else notebooks:
        seconds, error = execute(path.resolve(), a.minutes, env, a.keep)
        print(f"{'FAILED' if error else 'ok':6} {seconds:6.1f} s  {path.name}", flush=True)
        problems += [f"{path.name}: {error}"] if error else []
    print("\n".join(problems) or f"{len(notebooks)} notebooks: no problem")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
