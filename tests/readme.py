"""Check that README says what is there: its commands parse, its files, links, targets and Python names exist.

    python tests/readme.py

The commands themselves are run by tests/commands.py, by the cells below `main` in the notebook of each, and by
tests/page.py; here every command line of README is read by the parser of its command, so that a flag that is renamed
or a file that is moved is found. The first screen must have what it promises.
"""

import ast
import contextlib
import importlib
import io
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "examples/bug_reports/README.md", "examples/hotel_guide/README.md")
FIRST_SCREEN = 45  # lines
MADE = ("bugs/", "runs/", "data/bug_reports", "pins.txt", "rows.jsonl")  # by the commands above, or by the user


class Parsed(Exception):
    "Say that a command's arguments were parsed, before it does anything."


def blocks(text: str, kind: str) -> list[str]:
    "Return the fenced blocks of one language."
    return [re.sub(r"\\\\\n\s*", " ", b) for b in re.findall(rf"^\s*```{kind}\n(.*?)^\s*```", text, re.M | re.S)]


def command_lines(text: str) -> list[list[str]]:
    "Return every `python3 -m pocketguide...` of a text as words, those in sentences too."
    lines = [line.split("#")[0] for block in blocks(text, "bash") for line in block.splitlines()]
    lines += re.findall(r"`(python3? -m pocketguide[^`]*)`", text)
    found = [re.search(r"(?:python3? -m|torchrun .*-m) (pocketguide\S*.*)", line) for line in lines]
    return [shlex.split(m[1].replace("<the Studio's address>", "HOST").split("&&")[0]) for m in found if m]


def parse(module: str, arguments: list[str]) -> str:
    "Return what a command's parser says against arguments, empty if nothing."
    from pocketguide.core.cli import Parser
    from pocketguide.core.errors import UserError

    whole = Parser.parse_args

    def stop(self, args=None, namespace=None):
        whole(self, args, namespace)
        raise Parsed

    Parser.parse_args = stop
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main = importlib.import_module(module).main
            getattr(main, "__wrapped__", main)(arguments)
    except Parsed:
        return ""
    except (UserError, SystemExit) as e:
        return f"{module} {shlex.join(arguments)}: {e}"
    finally:
        Parser.parse_args = whole
    return f"{module} parsed nothing"


def files_of(words: list[str]) -> list[str]:
    "Return the words of a command that name files of the repository which are not there."
    named = [w for w in words if "/" in w and "//" not in w and "<" not in w and re.match(r"[\w.-]+/[\w./*-]+$", w)]
    kept = [w for w in named if not w.startswith(MADE) and w.split("/")[0] in {p.name for p in ROOT.iterdir()}]
    return [w for w in kept if not ((ROOT / w).exists() or (ROOT / f"{w}.xz").exists() or list(ROOT.glob(w)))]


def python_problems(text: str) -> list[str]:
    "Return the imports in a text's Python blocks that do not exist."
    wrong = []
    for node in (n for b in blocks(text, "python") for n in ast.walk(ast.parse(b)) if isinstance(n, ast.ImportFrom)):
        try:
            module = importlib.import_module(node.module)
        except ImportError:
            if node.module.startswith("pocketguide"):
                wrong.append(node.module)
            continue  # an optional package
        wrong += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
    return wrong


def link_problems(path: Path, text: str) -> list[str]:
    "Return the links of a text that lead nowhere: files, and headings of its own."
    plain = re.sub(r"```.*?```", "", text, flags=re.S)
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", plain, re.M)}
    links = re.findall(r"\]\(([^)\s]+)\)", plain)
    files = [x for x in links if not x.startswith(("#", "http")) and not (path.parent / x).exists()]
    return files + [x for x in links if x.startswith("#") and x[1:] not in anchors]


def first_screen(text: str) -> list[str]:
    "Return what the first screen of README lacks."
    top = "\n".join(text.splitlines()[:FIRST_SCREEN])
    rows = len(re.findall(r"^\| \*\*", top, re.M))
    wanted = {
        "one picture": len(re.findall(r"!\[", top)) == 1,
        "two commands": re.findall(r"^    make (\w+)", top, re.M) == ["demo", "app"],
        "five lines of what you get": len(re.findall(r"^- \*\*", top, re.M)) == 5,
        "four numbers": rows == 4,
        "six lines of an own contract": len(blocks(top, "bash")[0].splitlines()) == 6 if blocks(top, "bash") else False,
    }
    return [f"the first {FIRST_SCREEN} lines lack {what}" for what, there in wanted.items() if not there]


def problems(name: str) -> list[str]:
    "Return everything that is wrong with one text."
    path, wrong = ROOT / name, []
    text = path.read_text(encoding="utf-8")
    for module, *arguments in command_lines(text):
        wrong += filter(None, [parse(module, arguments)])
        wrong += [f"{module}: there is no {file}" for file in files_of(arguments)]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong += [f"make {t}" for t in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M) if t not in targets]
    return wrong + python_problems(text) + link_problems(path, text)


def main() -> int:
    "Check the texts and return the exit code."
    sys.path.insert(0, str(ROOT))
    found = {name: problems(name) for name in TEXTS}
    found["README.md"] += first_screen((ROOT / "README.md").read_text(encoding="utf-8"))
    for name, wrong in found.items():
        print("\n".join(f"{name}: {problem}" for problem in wrong) or f"{name}: as it says")
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
