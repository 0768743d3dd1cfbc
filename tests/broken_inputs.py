"""Give the commands what is broken, each in a process of its own: one line, exit 2, and nothing lost.

    python tests/broken_inputs.py

Three kinds of it, at least seven ways each: schemas (`new`, `run_samples`), rows (`new`, `train`), and chat servers
that break down in the midst of the work (`run_samples`, `teach`). What such a server has answered is kept, and the
same command asks for the others only.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pocketguide.new
import pocketguide.teach
import pocketguide.train.train  # noqa: F401 - for the forks
from pocketguide.core.files import read_jsonl, write_json, write_jsonl
from pocketguide.engine.testing import ChatServer, run_child

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "eval/other/bug_report.schema.json"
REPORT = {"title": "A fault", "severity": "low", "area": "other", "steps": ["Open it."], "expected": "It opens."}
ROW = {"prompt": "The map stays blank.", "completion": REPORT}
SCHEMAS = {  # None: there is no such file
    "absent": (None, "cannot read the schema"),
    "empty": ("", "the schema is not JSON"),
    "prose": ("A report has a title.", "the schema is not JSON"),
    "cut": ('{"type": "object", "prop', "the schema is not JSON"),
    "list": ("[]", "a JSON Schema is an object here"),
    "type": ('{"type": "objet"}', "not a JSON Schema"),
    "far": ('{"$ref": "https://example.org/bug.json"}', "refers to"),
    "lost": ('{"$ref": "#/$defs/bug"}', "which is not in it"),
    "endless": ('{"$ref": "#"}', "without an end"),
    "pattern": ('{"type": "string", "pattern": "[z-a]"}', "ECMA-262"),
}
ROWS = {
    "absent.jsonl": (None, "cannot read the training data"),
    "empty.jsonl": ("", "is empty"),
    "cut.jsonl": (f'{json.dumps(ROW)}\n{{"prompt": "The ma', "cut.jsonl:2"),
    "number.jsonl": (f"{json.dumps(ROW)}\n5\n", "number.jsonl:2"),
    "no_answer.jsonl": ('{"prompt": "Hi"}\n', "no_answer.jsonl:1"),
    "blank.jsonl": (json.dumps({**ROW, "prompt": " "}), "is blank"),
    "misfit.jsonl": (json.dumps({**ROW, "completion": {**REPORT, "severity": "dire"}}), "$.severity"),
    "binary.jsonl": (b"\x80\x81", "not UTF-8"),
    "columns.csv": ("a,b,c\n1,2,3\n", "none is called prompt"),
    "object.json": ("{}", "is no list"),
}
SERVERS = {  # what every later request meets, and what is said of it
    401: "the server does not accept the key",
    404: "does not know the model or the address",
    429: "the server takes no more requests",
    500: "the server answers with status 500",
    400: "the server answers with status 400",
    "reset": "no connection to the server, or it broke",
    "cut stream": "no connection to the server, or it broke",
    "half": "the reply is no chat completion",
    "page": "the reply is no chat completion",
    "no choices": "the reply is no chat completion",
}
BEFORE, QUESTIONS = 4, 6  # requests that a server answers before it breaks down; questions, and drafts of the plan
# A module as a command, for each list of arguments; its client of a server waits a hundredth of a second at most
COMMAND = """
import anyio, json, runpy, sys
nap, module = anyio.sleep, sys.argv[1]
anyio.sleep = lambda seconds: nap(min(seconds, 0.01))
for words in json.loads(sys.argv[2]):
    sys.argv, code = [module, *words], 0
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as e:
        code = e.code
    print(f"\\x1e{code}", flush=True)
"""
ONE = ["--model", "m", "--concurrency", "1", "--quiet"]
PLAN = """
name: bugs
task: {{schema: {schema}}}
message: Write what a user says about {{topic}}. {{register}} {{constraint}}
topics: [login, printing, search, sync, export, import]
registers: [Be brief.]
constraints: [Name the version.]
constrained: false
"""


def run_each(module: str, commands: list[list]) -> list[tuple[int, str]]:
    "Return (exit code, output) of `python -m module` with each list of arguments, all in one fork of this process."
    words = json.dumps([[*map(str, arguments)] for arguments in commands])
    code, said = run_child(COMMAND, module, words, log="child.log")
    parts = re.findall(r"(.*?)\x1e(\d+)\n", said, re.S)
    assert code == 0 and len(parts) == len(commands), said[-1500:]
    return [(int(code), text) for text, code in parts]


def check_error(result: tuple[int, str], part: str, what: object) -> None:
    "Check that a command ended in one line that says what is wrong, and with exit code 2."
    code, said = result
    clean = said.startswith("error: ") and said.count("\n") == 1 and len(said) < 600
    assert code == 2 and clean and part in said, f"{what}: exit code {code}, {said[-1500:]}"


def write(name: str, text: str | bytes | None) -> None:
    "Write a file, unless there is to be none."
    if text is not None:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())


def check_schemas() -> None:
    "Check that a broken schema is found before anything else is done."
    for name, (text, _) in SCHEMAS.items():
        write(f"{name}.json", text)
    asked = ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--prompts", "suite.jsonl", "--out", "made"]
    schemas = [["--schema", f"{name}.json"] for name in SCHEMAS]
    results = run_each("pocketguide.new", [["made", "--rows", "rows.jsonl", *schema] for schema in schemas])
    results += run_each("pocketguide.train.run_samples", [[*asked, *schema] for schema in schemas])
    for result, (name, (_, part)) in zip(results, [*SCHEMAS.items()] * 2):
        check_error(result, part, name)
    assert not Path("made").exists()


def check_rows() -> None:
    "Check that broken rows are found by line, and that neither a folder nor a run is left behind."
    for name, (text, _) in ROWS.items():
        write(name, text)
    trained = ["--config", "config.yaml", "--runs", "runs", "--set", f"task={{schema: {SCHEMA}}}"]
    results = run_each("pocketguide.new", [["made", "--schema", SCHEMA, "--rows", name] for name in ROWS])
    results += run_each("pocketguide.train.train", [[*trained, "--set", f"data.train={name}"] for name in ROWS])
    for result, (name, (_, part)) in zip(results, [*ROWS.items()] * 2):
        check_error(result, part, name)
    assert not Path("made").exists() and not list(Path().glob("runs/*"))


def answer(body: dict) -> str:
    "Play a model that writes messages and reports."
    text = body["messages"][-1]["content"]
    topic = text.removeprefix("Write what a user says about ").split(".")[0]
    return (
        json.dumps(REPORT)
        if not text.startswith("Write what")
        else f"My {topic}: {' '.join(f'{topic}{i}' for i in range(9))}"
    )


def run_samples(url: str, out: str) -> tuple[int, str]:
    "Let a server answer the suite, one question after the other."
    asked = ["--endpoint", url, "--prompts", "suite.jsonl", "--schema", SCHEMA, "--out", out]
    (result,) = run_each("pocketguide.train.run_samples", [[*asked, *ONE]])
    return result


def teach(url: str, out: str) -> tuple[int, str]:
    "Let a server draft rows; the line that says what it may cost is left out."
    asked = ["--endpoint", url, "--plan", "plan.yaml", "--out", out, "--yes"]
    ((code, said),) = run_each("pocketguide.teach", [[*asked, *ONE]])
    return code, said.partition("\n")[2]


def check_server(command: Callable, kept: str, fault: int | str, part: str) -> None:
    "Let a server break down in the midst of a command, and start the command again when it works."
    out = f"{command.__name__} {fault}"
    with ChatServer(answer, [None] * BEFORE + [fault] * 100) as server:
        check_error(command(server.url, out), part, out)
        (log,) = Path(out).rglob(kept)
        assert len(read_jsonl(log)) == BEFORE, (out, log.read_text())
        server.faults.clear()
        before = len(server.bodies)
        code, said = command(server.url, out)
        asked = len(server.bodies) - before
    everything = QUESTIONS if command is run_samples else 2 * QUESTIONS  # a draft is a message and an answer
    assert code == 0 and asked == everything - BEFORE, (out, asked, said)


def check_servers() -> None:
    "Check every way in which a server breaks down, with both commands that ask one."
    write("plan.yaml", PLAN.format(schema=SCHEMA))
    for fault, part in SERVERS.items():
        check_server(run_samples, ".served.journal.jsonl", fault, part)
        check_server(teach, "requests.jsonl", fault, part)


def main() -> None:
    "Break everything."
    for module in ("jsonschema", "llguidance", "openai", "openai.resources.chat"):  # once, for all forks
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_jsonl("rows.jsonl", [ROW])
        questions = [{"id": f"q{i}", "prompt": f"The map stays blank, part {i}."} for i in range(QUESTIONS)]
        write_jsonl("suite.jsonl", questions)
        write_json("config.yaml", {"name": "broken", "data": {"train": "", "val": "rows.jsonl"}})  # JSON is YAML
        check_schemas()
        check_rows()
        if find_spec("openai"):
            check_servers()
        else:
            print("skipped: no server was asked, the package openai is not installed (pip install openai)")
        os.chdir(ROOT)
    print(f"{len(SCHEMAS)} schemas, {len(ROWS)} files of rows, {len(SERVERS)} servers")


if __name__ == "__main__":
    sys.exit(main())
