"""Ask on the page by typing, in headless Chromium at 390 and 1280 pixels, light and dark.

    python tests/page.py                                     # a tiny model that writes answers of the validation data
    python tests/page.py --url http://127.0.0.1:8000         # a server that runs; --shots FOLDER saves pictures

Checked for each of eight questions: it is typed and sent by Enter, its answer and what was understood appear, boxes are
ticked and a tree is walked by keyboard, the console is silent, nothing is loaded from elsewhere, the window does not
scroll sideways, text stands out from its background (WCAG AA). Without Chromium or Gradio it says that the check was
skipped, and exits 0.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from portfolio_page import BROWSERS, INSPECT, Browser, save_picture, skipped

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "4 days in Lisbon with two kids, rainy",
    "What should I pack for a week of hiking in Norway in September?",
    "My phone was stolen in Bangkok an hour ago. What do I do now?",
    "Carry-on only or checked bag for ten days in Japan?",
    "2 days in Ghent, vegetarian, <b>beer</b> & ${old} {{books}}",
    "first time flying alone with a baby, Dublin to Madrid, list of everything to have at hand pls",
    "I lost my passport in Rome, what now?",
    "train or plane from Paris to Milan, can't decide",
)
KINDS = ("itinerary", "checklist", "procedure", "decision_tree") * 2  # that the scripted model answers with
STATUS = "document.querySelector('#status [role=status]')?.textContent || ''"
FAINT = INSPECT.replace("main *, nav *", ".gradio-container *")


def make_base(folder: str, texts: list[str]) -> str:
    """Make a tiny base model whose tokens are pieces of six characters of some texts, and return its id.

    So an answer takes a sixth of the passes that it takes byte by byte."""
    from pocketguide.engine.models import load_model, load_tokenizer, no_progress_bars
    from pocketguide.engine.testing import make_tiny_base

    base = make_tiny_base(folder, layers=1)
    model, tokenizer = load_model(base, "float32", "cpu"), load_tokenizer(base)
    tokenizer.add_tokens(sorted({piece for text in texts for piece in re.findall("[ -~]{4,6}", text)}))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with no_progress_bars():
        model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base


class Scripted:
    "Serve the page with a tiny model that writes what it is told to."

    def __init__(self, folder: str):
        import uvicorn

        from pocketguide.core.config import Config, DataConfig
        from pocketguide.core.files import read_jsonl
        from pocketguide.engine.testing import make_tiny_run
        from pocketguide.ship.guide import Guide
        from pocketguide.ship.page import mount_page
        from pocketguide.ship.server import make_app
        from pocketguide.ship.service import Service
        from pocketguide.travel.contract import serialize

        rows = sorted(read_jsonl(ROOT / "data/v3/val.jsonl"), key=lambda row: -len(str(row["response"])))
        self.answers = {row["payload_type"]: serialize(row["response"]) for row in rows}  # the shortest of each
        base = make_base(f"{folder}/base", list(self.answers.values()))
        run = make_tiny_run(Config("tiny", base, data=DataConfig(facts_block=True)), folder)
        self.guide = Guide(run.path, max_new_tokens=2600, dtype="float32", device="cpu", decoding="free")
        service = Service(self.guide)
        self.server = uvicorn.Server(
            uvicorn.Config(mount_page(make_app(service), service), port=0, log_level="warning")
        )
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def prepare(self, kind: str) -> None:
        "Let the next answer be one of this payload type."
        from pocketguide.engine.testing import ScriptedHead

        model = self.guide.model
        model.engine.model.lm_head = ScriptedHead(model.tokenizer, self.answers[kind])


def wait(browser: Browser, code: str, seconds: float) -> bool:
    "Wait until a JavaScript expression is true; return False if it never is."
    end = time.time() + seconds
    while time.time() < end:
        if browser.value(code):
            return True
        time.sleep(0.1)
    return False


def ask(browser: Browser, question: str, seconds: float) -> tuple[float, float]:
    "Type a question and send it; return the seconds to the first words and to the end, infinite if it never came."
    browser.value("document.querySelector('#question textarea').focus()")
    browser.value("document.querySelector('#question textarea').select()")
    browser.call("Input.insertText", text=question)
    started = time.time()
    browser.press("Enter", 13, "\r")
    is_new = wait(browser, f"/Reading|Waiting|Writing/.test({STATUS})", 10)
    said = "document.querySelector('#understood').innerText.includes('Understood')"
    first = wait(browser, f"{said} || !!document.querySelector('#status .pg-problem')", seconds)
    first_s = time.time() - started
    ended = wait(browser, f"/^Answered/.test({STATUS}) || !!document.querySelector('#status .pg-problem')", seconds)
    return (first_s if is_new and first else float("inf")), (time.time() - started if ended else float("inf"))


def use(browser: Browser) -> list[str]:
    "Return what of the answer cannot be used by keyboard: its first box, its tree, the JSON."
    wrong = []
    if browser.value("!!document.querySelector('#answer input')"):
        browser.value("document.querySelector('#answer input').focus()")
        browser.press(" ", 32, " ")
        if not browser.value("document.querySelector('#answer input').checked"):
            wrong.append("a box is not ticked by the space bar")
    steps = 0
    while browser.value(
        "!![...document.querySelectorAll('#answer details:not([open]) > summary')].find(s => s.offsetParent)"
    ):
        browser.value(
            "[...document.querySelectorAll('#answer details:not([open]) > summary')].find(s => s.offsetParent).focus()"
        )
        browser.press("Enter", 13, "\r")
        steps += 1
        if not browser.value("document.activeElement.parentElement.open"):
            wrong.append("an answer of the tree does not open")
        inside = "document.activeElement.parentElement.querySelector('details')"
        if steps > 30 or not browser.value(f"!!{inside}"):
            break
    if browser.value("!!document.querySelector('.pg-tree')") and not steps:
        wrong.append("the tree has nothing to open")
    return wrong


def outside(browser: Browser, url: str) -> list[str]:
    "Return the addresses of requests to others."
    requests = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    return [r for r in requests if not r.startswith((url, "data:", "blob:", "about:", "chrome:"))]


def console(browser: Browser) -> list[str]:
    "Return warnings and errors of the console."
    found = []
    for e in browser.events:
        about = e.get("params", {})
        if e.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            found.append(about["entry"]["text"])
        if e.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            found.append(json.dumps(about["args"])[:300])
        if e.get("method") == "Runtime.exceptionThrown":
            found.append(json.dumps(about["exceptionDetails"])[:300])
    return found


def open_page(browser: Browser, url: str, width: int, scheme: str) -> None:
    "Open the page in a window of this width and this colour scheme."
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser.call("Page.navigate", url=url)
    if not wait(browser, "!!document.querySelector('#question textarea')", 60):
        raise RuntimeError("the page did not come up")


def check(
    browser: Browser, url: str, width: int, scheme: str, asked: list, scripted, shots, seconds: float
) -> list[str]:
    "Return what is wrong with the page in one window, in which some questions are asked."
    open_page(browser, url, width, scheme)
    wrong = {}
    for question, kind in asked:
        if scripted:
            scripted.prepare(kind)
        first, whole = ask(browser, question, seconds)
        status, text = browser.value(STATUS), browser.value("document.querySelector('#answer').innerText")
        print(f"{width:5} px, {scheme:5}: {first:5.1f} s {whole:5.1f} s  {question[:40]:40}  {status[:60]}", flush=True)
        if shots:
            save_picture(browser, width, shots / f"{width}-{scheme}-{QUESTIONS.index(question)}.png")
        wrong[f"{question[:30]}: no answer"] = not status.startswith("Answered") and status
        wrong[f"{question[:30]}: parts are missing"] = "Not certain" not in text
        wrong[f"{question[:30]}: keyboard"] = use(browser)
        seen = browser.value(FAINT)
        wrong[f"{question[:30]}: scrolls sideways"] = seen["scroll"] > width and seen["scroll"]
        wrong[f"{question[:30]}: faint text"] = seen["faint"]
    browser.value("0")  # collects the events that are still on their way
    wrong |= {"console": console(browser), "loaded from elsewhere": outside(browser, url)}
    return [f"{width} px, {scheme}: {what}: {value}" for what, value in wrong.items() if value]


def check_all(binary: str, folder: str, url: str, shots: Path | None, seconds: float) -> list[str]:
    "Return what is wrong with the page in any window."
    scripted = None if url else Scripted(folder)
    browser, wrong, asked = Browser(binary, f"{folder}/profile"), [], list(zip(QUESTIONS, KINDS))
    try:
        for number, (width, scheme) in enumerate((w, s) for w in (390, 1280) for s in ("light", "dark")):
            own = asked[2 * number : 2 * number + 2]
            wrong += check(browser, url or scripted.url, width, scheme, own, scripted, shots, seconds)
    finally:
        browser.close()
    return wrong


def why_skipped() -> str:
    "Return why the check cannot run here, empty if it can."
    try:
        import gradio  # noqa: F401
    except ImportError:
        return "Gradio is not installed (pip install -e '.[app]')"
    return skipped()


def main() -> int:
    "Check the page and return the exit code."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="", help="a server that runs; left out: one with a tiny model is started")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the page")
    parser.add_argument("--seconds", type=float, default=120, help="that an answer may take")
    args = parser.parse_args()
    if why := why_skipped():
        print(f"skipped: the page to ask on was not checked, {why}")
        return 0
    binary = next(b for name in BROWSERS if (b := shutil.which(name)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        wrong = check_all(binary, tmp, args.url, args.shots, args.seconds)
    print("\n".join(wrong) or "the page answers")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
