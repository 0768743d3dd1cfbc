"""Check that the portfolio page can be read, in headless Chromium at 390 and 1280 pixels, light and dark.

    python tests/portfolio_page.py                          # builds the page into a temporary folder first
    python tests/portfolio_page.py portfolio/index.html     # checks an existing page; --shots FOLDER saves pictures

Checked: the window does not scroll sideways, every image is there and has a text instead (alt), the console is silent,
nothing is loaded, links lead somewhere, Tab reaches the skip link first and then everything that can be used, with a
visible frame, Enter opens what is folded, text stands out from its background (WCAG AA), the file is under 3 MB.
Without Chromium it says that the check was skipped, and exits 0.
"""

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LIMIT = 3_000_000  # bytes

INSPECT = r"""(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const rgb = colour => (colour.match(/[\d.]+/g) || []).map(Number);
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 ? colour.length : colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = element => {
    const a = luminance(rgb(getComputedStyle(element).color)), b = luminance(background(element));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const hasText = element => [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const named = element => element.tagName + ": " + element.textContent.trim().slice(0, 40);
  const faint = all("main *, nav *").filter(hasText).map(e => [contrast(e), named(e)]).filter(x => x[0] < 4.5);
  const wide = all("main *, nav *")
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre"))
    .map(e => e.tagName + "." + e.className);
  const levels = all("h1, h2, h3, h4").map(h => +h.tagName[1]);
  const images = [...document.images];
  return {
    scroll: document.documentElement.scrollWidth,
    width: innerWidth,
    wide: wide.slice(0, 5),
    faint: faint.slice(0, 5),
    images: images.length,
    missing: images.filter(i => !i.complete || !i.naturalWidth).length,
    no_alt: images.filter(i => !i.alt.trim()).length,
    dead: all("a").map(a => a.getAttribute("href"))
      .filter(h => !h.startsWith("../") && (!h.startsWith("#") || !document.getElementById(h.slice(1)))),
    files: all("a").map(a => a.getAttribute("href")).filter(h => h.startsWith("../")),
    nav: all("nav a").length,
    unreachable: all(".scroll, pre").filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0).length,
    order: levels[0] === 1 && levels.every((l, i) => !i || l <= levels[i - 1] + 1),
    h1: levels.filter(l => l === 1).length,
    smallest: Math.min(...all("main *").filter(hasText).map(e => parseFloat(getComputedStyle(e).fontSize))),
    lang: document.documentElement.lang,
    title: document.title,
    height: document.documentElement.scrollHeight,
  };
})()"""


class Browser:
    "Drive Chromium through its debugging socket."

    def __init__(self, binary: str, folder: str):
        import websocket

        flags = (
            "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-dev-shm-usage "
            "--remote-debugging-port=0 --remote-allow-origins=*"
        )
        command = [binary, *flags.split(), f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port(Path(folder) / "DevToolsActivePort", binary)
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine, never through a proxy
        targets = json.load(local.open(f"http://127.0.0.1:{port}/json"))
        url = next(t for t in targets if t["type"] == "page")["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(url, timeout=60, http_no_proxy=["127.0.0.1"])
        self.last, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _port(self, file: Path, binary: str) -> str:
        "Wait until the browser has written its port, and return it."
        end = time.time() + 60
        while not (file.exists() and len(file.read_text().split()) > 1):
            if time.time() > end or self.process.poll() is not None:
                raise RuntimeError(f"{binary} did not start")
            time.sleep(0.1)
        return file.read_text().split()[0]

    def call(self, method: str, **params) -> dict:
        "Call a method of the debugging protocol and return its result; collect the events that come meanwhile."
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, event: str) -> None:
        "Wait until an event has come."
        while not any(e.get("method") == event for e in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def value(self, code: str):
        "Return the value of a JavaScript expression."
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        "Press and release a key."
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def close(self) -> None:
        "End the browser."
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except Exception:
            self.process.kill()


USABLE = """[...document.querySelectorAll("a[href], summary, [tabindex='0']")]
  .filter(e => (e.offsetParent || e.className === "skip")
    && (e.tagName === "SUMMARY" || !e.closest("details:not([open])")))"""
FOCUSED = """(e => {
  e.dataset.met = 1;
  const style = getComputedStyle(e), framed = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
  return [e.getAttribute('href') || '', e.tagName + ': ' + e.textContent.trim().slice(0, 40), framed];
})(document.activeElement)"""
NOT_MET = "filter(e => !e.dataset.met).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40))"


def walk(browser: Browser) -> dict:
    "Return what is wrong when the page is used with the keyboard alone."
    first, without_frame = None, []
    for _ in range(browser.value(f"{USABLE}.length")):
        browser.press("Tab", 9)
        href, name, framed = browser.value(FOCUSED)
        first = href if first is None else first
        if not framed:
            without_frame.append(name)
    missed = browser.value(f"{USABLE}.{NOT_MET}")
    browser.value("document.querySelector('summary') && document.querySelector('summary').focus()")
    browser.press("Enter", 13, "\r")
    opened = browser.value("!document.querySelector('summary') || document.querySelector('details').open")
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    return {
        "first Tab is not the skip link": first != "#main" and str(first),
        "Tab does not reach": missed[:3],
        "no frame around what has the focus": without_frame[:3],
        "Enter does not open what is folded": not opened,
    }


def save_picture(browser: Browser, width: int, file: Path) -> None:
    "Save a picture of the whole page."
    file.parent.mkdir(parents=True, exist_ok=True)
    browser.value("document.activeElement.blur()")
    height = browser.value("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    picture = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    file.write_bytes(base64.b64decode(picture["data"]))


def console_and_requests(browser: Browser) -> tuple[list, list]:
    "Return what the page wrote to the console, and the addresses that it loaded."
    console_events = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    written = [e["params"] for e in browser.events if e.get("method") in console_events]
    requests = [e["params"]["request"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    return written, [r["url"] for r in requests if not r["url"].startswith(("data:", "file:"))]


def check(browser: Browser, page: Path, width: int, scheme: str, shots: Path | None) -> list[str]:
    "Return what is wrong with the page in a window of this width and this colour scheme."
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser.call("Page.navigate", url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = browser.value(INSPECT)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    with_keyboard = walk(browser)
    time.sleep(0.3)
    browser.value("0")  # collects the events that are still on their way
    if shots:
        save_picture(browser, width, shots / f"{width}-{scheme}.png")
    written, loaded = console_and_requests(browser)
    print(
        f"{width:5} px, {scheme:5}: {seen['images']} images, {seen['nav']} links in the list, {seen['height']} px "
        f"high, smallest letters {seen['smallest']:.1f} px"
    )
    wrong = {
        "scrolls sideways": seen["scroll"] > width or seen["wide"],
        "images missing": seen["missing"],
        "no images": not seen["images"],
        "images without a text instead": seen["no_alt"],
        "links that lead nowhere": seen["dead"] + [f for f in seen["files"] if not (ROOT / f[3:]).exists()],
        "no list of contents": not seen["nav"],
        "boxes that scroll and no key reaches": seen["unreachable"],
        "headings out of order": not seen["order"] or seen["h1"] != 1,
        "no language or title": not (seen["lang"] and seen["title"]),
        "faint text": seen["faint"],
        "letters under 11 px": seen["smallest"] < 11 and seen["smallest"],
        **with_keyboard,
        "console": written,
        "loaded": loaded,
    }
    return [f"{width} px, {scheme}: {what}: {value}" for what, value in wrong.items() if value]


def build(page: Path) -> str:
    "Build the page from the notebook; return the error, empty if there is none."
    command = [sys.executable, "-m", "pocketguide.ship.portfolio", "--html", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return f"the page could not be built: {done.stderr[-1500:]}" if done.returncode else ""


def check_all(binary: str, page: Path, folder: str, shots: Path | None) -> list[str]:
    "Return what is wrong with the page in any window."
    size = page.stat().st_size
    wrong = [f"{size} bytes, more than {LIMIT}"] if size > LIMIT else []
    browser = Browser(binary, folder)
    try:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                wrong += check(browser, page, width, scheme, shots)
    finally:
        browser.close()
    return wrong


def skipped() -> str:
    "Return why the check cannot run here, empty if it can."
    if not any(shutil.which(name) for name in BROWSERS):
        return f"there is no Chromium here (tried {', '.join(BROWSERS)})"
    try:
        import websocket  # noqa: F401  (comes with JupyterLab)
    except ImportError:
        return 'the package websocket-client is not installed (pip install -e ".[dev]")'
    return ""


def main() -> int:
    "Check a page and return the exit code."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", nargs="?", type=Path, help="the page; left out: built from the notebook")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the whole page")
    args = parser.parse_args()
    if why := skipped():
        print(f"skipped: the portfolio page was not checked, {why}")
        return 0
    binary = next(b for name in BROWSERS if (b := shutil.which(name)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        page = args.page or Path(tmp) / "index.html"
        if args.page is None and (error := build(page)):
            print(error)
            return 1
        if not page.is_file():
            print(f"error: there is no page ({page}): build it with make portfolio", file=sys.stderr)
            return 2
        wrong = check_all(binary, page, f"{tmp}/profile", args.shots)
    print("\n".join(wrong) or "the page can be read")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
