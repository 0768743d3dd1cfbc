"""Check what a reader of the tree relies on: layers, names, prose and size of functions.

    python tests/architecture.py

Modules import from earlier layers only; the loop imports no travel; the modules that must start fast import no PyTorch;
a notebook is one module of the same name; docstrings begin with a verb; functions and lines are short.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pocketguide"
# In the order in which they may import: a module imports only from those above it.
LAYERS = """
core: text errors cli files rows sources config runs stats plots
contract: dialect cases schema grammar task lark gate
engine: chat completion prompts models ranks testing fusion kernels adapters static_cache fused_step decoder
engine: generate llama remote
travel: contract gazetteer facts places sights constraints reading library prompts questions compose retrieve
travel: dishes aspects options day_plan grounding own_guide measures review task draws
.: data
train: microbatch tracking train run_samples sweep
.: new
.: teach failure_analysis
ship: gguf quantize document html guide ask dataset_cards summary portfolio understanding service server page serve
ship: export
"""
USER_NAMED = {"02_train": "train.train", "03_batched_eval": "train.run_samples", "03_new": "new"}
USER_NAMED |= {"04_teach": "teach"}  # the command is python -m pocketguide.teach
# The loop looks a task up by its name: the one import that points the other way.
LOOKUPS = {("contract.grammar", "contract.task")}
KNOWS_NO_TRAVEL = ("core.", "contract.", "engine.", "train.", "teach", "failure_analysis")
TORCH_FREE = ("core.", "contract.", "travel.", "failure_analysis", "engine.chat", "engine.completion", "engine.prompts")
TORCH_FREE += (
    "new",
    "teach",
    "engine.llama",
    "engine.remote",
    "ship.document",
    "ship.html",
    "ship.guide",
    "ship.ask",
    "ship.summary",
    "ship.dataset_cards",
    "ship.portfolio",
)
TORCH_FREE += ("ship.understanding", "ship.service", "ship.serve")
NOT_A_VERB = (
    r"(The|A|An|This|What|Whether|How|Who|Where|When|Which|One|All|Every|Each|No|If|True|False|Of|From|For|In|To)\b"
)
MAX_LINES, MAX_WIDTH = 40, 120


def module_order() -> list[str]:
    "Return the names of all modules, in the order of the layers."
    names = []
    for line in LAYERS.strip().splitlines():
        folder, _, modules = line.partition(":")
        prefix = "" if folder == "." else f"{folder}."
        names += [prefix + module for module in modules.split()]
    return names


def module_name(path: Path) -> str:
    "Return the dotted name of a file inside the package."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def sources() -> dict[str, str]:
    "Return the source of every exported module by its name."
    paths = [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")]
    return {module_name(p): p.read_text(encoding="utf-8") for p in paths}


def imports(name: str, source: str) -> set[tuple[str, str]]:
    "Return (module, name) of everything that a module imports from the package, inside functions too."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split(".")[: -node.level]
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pocketguide."):
            found |= {(node.module.removeprefix("pocketguide."), alias.name) for alias in node.names}
    return found


def check_layers() -> list[str]:
    "Return modules without a place in the layers, and imports that point the wrong way."
    order, modules = module_order(), sources()
    problems = [f"{name} has no place in LAYERS" for name in modules if name not in order]
    problems += [f"LAYERS names {name}, which is not there" for name in order if name not in modules]
    for name, source in modules.items():
        for module, imported in imports(name, source):
            target = module if module in order else f"{module}.{imported}"
            wrong = target in order and name in order and order.index(target) >= order.index(name)
            if wrong and (name, target) not in LOOKUPS:
                problems.append(f"{name} imports {target}, which is below it")
            if imported.startswith("_"):
                problems.append(f"{name} imports the private name {module}.{imported}")
            if name.startswith(KNOWS_NO_TRAVEL) and target.startswith("travel"):
                problems.append(f"{name} imports {target}: the loop knows no travel")
    return problems


def check_torch_free() -> list[str]:
    "Return the modules that must start fast and import PyTorch nevertheless."
    names = [name for name in module_order() if name.startswith(TORCH_FREE)]
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n importlib.import_module('pocketguide.' + name)\n"
    code += " if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT)
    return [done.stderr.strip()[-300:]] if done.returncode else []


def check_notebooks() -> list[str]:
    "Return notebooks that are not one module of their own name."
    problems, exported = [], set()
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.stem == "index":
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        targets = re.findall(r"^#\| default_exp (\S+)", "\n".join("".join(c["source"]) for c in cells), re.M)
        folder = ".".join(path.relative_to(ROOT / "nbs").parts[:-1])
        own = ".".join(filter(None, [folder, re.sub(r"^\d+_", "", path.stem)]))
        if targets != [USER_NAMED.get(path.stem, own)]:
            problems.append(f"{path.relative_to(ROOT)} exports {targets}, its name says {own}")
        exported |= set(targets)
    return problems + [f"{name} has no notebook" for name in sources() if name not in exported]


def check_prose() -> list[str]:
    "Return docstrings that do not begin with a verb, long functions and long lines of code."
    problems = []
    for name, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            doc, lines = ast.get_docstring(node), node.end_lineno - node.lineno + 1
            if doc and re.match(NOT_A_VERB, doc):
                problems.append(f"{name}.{node.name}: begin the docstring with a verb, not {doc[:50]!r}")
            if isinstance(node, ast.FunctionDef) and lines > MAX_LINES:
                problems.append(f"{name}.{node.name} has {lines} lines, at most {MAX_LINES}")
        start = source.find("\n# %% ..")  # above it nbdev writes the list of names
        lines = enumerate(source.splitlines(), 1)
        wide = [i for i, line in lines if len(line) > MAX_WIDTH and i > source[:start].count("\n")]
        problems += [f"{name}:{i} has more than {MAX_WIDTH} characters" for i in wide]
    return problems


def main() -> int:
    "Run all checks and print what is wrong."
    checks = (check_layers, check_torch_free, check_notebooks, check_prose)
    problems = [problem for check in checks for problem in check()]
    print("\n".join(problems) or "the layers, names and sizes are as they should be")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
