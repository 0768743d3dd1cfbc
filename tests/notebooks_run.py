"""Does every notebook pass "Run All"? And does a visible switch guard the cells that are left out?

    python tests/notebooks_run.py                       # all notebooks, one after another, as JupyterLab would run them; at most five minutes each
    python tests/notebooks_run.py --check               # only looks at the switches
    python tests/notebooks_run.py nbs/19_ask.ipynb --set POCKETGUIDE_LONG=1 --minutes 30

Nothing is written into the notebooks. Prints a line a notebook, and with --out a JSON file of the times. A notebook with cells marked slow, long or gpu has one cell, not hidden, that begins with "# The switch",
sets RUN_SLOW, RUN_LONG or RUN_GPU for every such mark, and every marked cell asks them.
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


def switch_problems(path: Path) -> list[str]:
    "What is wrong with a notebook's switch."
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells]
    marked = [(MARKS[m[1]], s) for s in sources for m in re.finditer(r"^#\|\s*(slow|long|gpu)\s*$", s, re.M)]
    switches = [i for i, s in enumerate(sources) if s.startswith("# The switch")]
    problems = [
        f"a marked cell does not ask {name}: {s.splitlines()[1][:60]}"
        for name, s in marked
        if not re.search(rf"\bif\b.*\b{name}\b", s)
    ]
    if marked and len(switches) != 1:
        return [*problems, f"{len(switches)} cells begin with '# The switch', it needs one"]
    if marked:
        problems += [
            f"the switch does not set {name}"
            for name in sorted({n for n, _ in marked})
            if not re.search(rf"^{name}\s*=", sources[switches[0]], re.M)
        ]
        problems += ["the switch stands too far down"] if switches[0] > 6 else []
    return problems


def run_all(path: Path, minutes: float, env: dict) -> tuple[float, str]:
    "(seconds, error or nothing) of the notebook in a kernel of its own."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb, began = nbformat.read(path, 4), time.perf_counter()
    try:
        NotebookClient(
            nb,
            timeout=60 * minutes,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=40"],
            resources={"metadata": {"path": str(path.parent)}},
        ).execute(env=env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        return time.perf_counter() - began, str(e)[-1500:]
    return time.perf_counter() - began, ""


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("notebooks", nargs="*", type=Path, help="all of nbs/ if left out")
    p.add_argument("--check", action="store_true", help="look at the switches only")
    p.add_argument("--minutes", type=float, default=5, help="how long a notebook may take")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an environment variable of the kernels"
    )
    p.add_argument("--out", type=Path, help="write the seconds of each notebook here, as JSON")
    a = p.parse_args()
    notebooks = a.notebooks or sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    wrong = [f"{path.name}: {problem}" for path in notebooks for problem in switch_problems(path)]
    seconds = {}
    for path in [] if a.check else notebooks:
        took, error = run_all(path.resolve(), a.minutes, {**os.environ, **dict(s.split("=", 1) for s in a.set)})
        seconds[path.stem] = round(took, 1)
        wrong += (
            [f"{path.name}: {error}"]
            if error
            else [f"{path.name}: {took:.0f} s, more than {a.minutes:g} minutes"]
            if took > 60 * a.minutes
            else []
        )
        print(f"{'FAILED' if error else 'ok':6} {took:6.1f} s  {path.name}", flush=True)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(
            json.dumps(
                {"cores": os.cpu_count(), "load_average_after": round(os.getloadavg()[0], 1), "seconds": seconds},
                indent=1,
            )
            + "\n"
        )
    print(
        "\n".join(wrong)
        or f"{len(notebooks)} notebooks: "
        + ("every switch is in its place" if a.check else f"the longest took {max(seconds.values()):.0f} s")
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
