"""Take the pictures of the page in docs/: it is asked in headless Chromium, at 390 and 1280 pixels, light and dark.

    python tools/page_pictures.py                                   # starts the server, with the best published run
    python tools/page_pictures.py --url http://127.0.0.1:8000       # asks a server that runs

Writes docs/page-<pixels>-<light|dark>.webp, one question each, and the animation docs/page.webp, in which an answer
grows, faster than it did. What was asked, and how long it took, stands in docs/page.json.
"""

import argparse
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from page import STATUS, ask, open_page
from portfolio_page import BROWSERS, Browser

SHOTS = (  # width, colour scheme, greatest height, question
    (1280, "light", 900, "4 days in Lisbon with two kids, rainy"),
    (390, "dark", 1000, "My phone was stolen in Bangkok an hour ago. What do I do now?"),
)
GROWING = "What should I pack for a week of hiking in Norway in September?"
FRAME_S, LONGEST_FRAME_S, FRAMES = 2.0, 1.2, 9  # between pictures; at most, when it is played; as many at most
WIDTH, HEIGHT, COLOURS = 390, 600, 8
OPENED = "[...document.querySelectorAll('#answer details')].slice(0, 2).forEach(d => d.open = true)"


def start_server(log) -> tuple[subprocess.Popen, str]:
    "Start the server on a free port and return its process and address."
    command = [sys.executable, "-u", "-m", "pocketguide.ship.serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    if not found:
        raise SystemExit(f"the server did not start: {line or 'no output'}")
    return process, found[0]


def picture(browser: Browser, width: int, height: int) -> Image.Image:
    "Return what the page looks like from its top, `height` pixels at most."
    whole = browser.value("document.querySelector('.gradio-container').scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, whole), "scale": 1}
    data = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def take_shot(browser: Browser, url: str, width: int, scheme: str, height: int, question: str, folder: Path) -> dict:
    "Ask a question and keep the picture of its answer; return what was asked and how long it took."
    open_page(browser, url, width, scheme)
    first, whole = ask(browser, question, 300)
    browser.value(OPENED)
    time.sleep(0.5)
    name = f"page-{width}-{scheme}.webp"
    picture(browser, width, height).save(folder / name, quality=35, method=6)
    return {"picture": name, "question": question, "status": browser.value(STATUS), "whole_s": round(whole, 1)}


def record(browser: Browser, url: str, folder: Path) -> dict:
    "Ask a question and keep pictures of its answer as an animation; return what was asked and how long it took."
    open_page(browser, url, WIDTH, "light")
    browser.value("document.querySelector('#question textarea').focus()")
    browser.call("Input.insertText", text=GROWING)
    frames, began = [window(browser)], time.time()
    browser.press("Enter", 13, "\r")
    while not browser.value(f"/^(Answered|No valid)/.test({STATUS})") and time.time() - began < 300:
        time.sleep(FRAME_S)
        browser.value("window.scrollTo(0, Math.max(0, document.querySelector('#status').offsetTop - 20))")
        frames.append(window(browser))
    took, status = round(time.time() - began, 1), browser.value(STATUS)
    for _ in range(3):  # scroll through the answer
        browser.value(f"window.scrollBy(0, {HEIGHT - 120})")
        time.sleep(0.3)
        frames.append(window(browser))
    save_animation(frames, folder / "page.webp")
    return {"picture": "page.webp", "question": GROWING, "status": status, "whole_s": took}


def window(browser: Browser) -> Image.Image:
    "Return what the window shows."
    data = browser.call("Page.captureScreenshot", format="png")["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").crop((0, 0, WIDTH, HEIGHT))


def save_animation(frames: list[Image.Image], path: Path) -> None:
    "Write the frames that differ, evenly thinned to `FRAMES`, with few colours."
    plain = [frame.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB") for frame in frames]
    changed = [f for i, f in enumerate(plain) if not i or f.tobytes() != plain[i - 1].tobytes()]
    step = max(1.0, (len(changed) - 1) / (FRAMES - 1))
    kept = [changed[round(i * step)] for i in range(min(FRAMES, len(changed)))]
    shown = [round(1000 * LONGEST_FRAME_S)] * (len(kept) - 1) + [4000]
    how = {"lossless": True, "method": 4, "quality": 80, "loop": 0}
    kept[0].save(path, save_all=True, append_images=kept[1:], duration=shown, **how)


def main() -> None:
    "Take the pictures and say how large they are."
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--url", default="", help="a server that runs; left out: one is started")
    p.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    a = p.parse_args()
    binary = next((b for name in BROWSERS if (b := shutil.which(name))), None)
    if binary is None:
        raise SystemExit(f"error: there is no Chromium (tried {', '.join(BROWSERS)}): install one")
    a.out.mkdir(exist_ok=True)
    server, url = (None, a.url) if a.url else start_server(sys.stderr)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(binary, folder)
        try:
            rows = [take_shot(browser, url, *shot, a.out) for shot in SHOTS] + [record(browser, url, a.out)]
        finally:
            browser.close()
            if server:
                server.terminate()
                server.wait(60)
    (a.out / "page.json").write_text(
        json.dumps({"pictures": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for path in sorted(a.out.glob("page*")):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
