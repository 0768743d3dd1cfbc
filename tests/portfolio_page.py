"""Is the portfolio page fit to be read? Headless Chromium at 390 and 1280 pixels, light and dark.

    python tests/portfolio_page.py                          # builds the page into a temporary folder first
    python tests/portfolio_page.py portfolio/index.html     # checks a page that is there; --shots FOLDER keeps pictures

Checked: the window does not scroll sideways, every image is there and has words in its place, the console is silent, nothing is loaded, links lead somewhere, Tab reaches the skip
link first and then everything that can be used, with a visible frame, Enter opens what is folded, text stands out from its background (WCAG AA), the file is under 3 MB. Says that it was skipped, and exits 0, where there is no Chromium.
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

LOOK = r"""(() => {
  const rgb = c => (c.match(/[\d.]+/g) || []).map(Number), light = c => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 ? c.length : c[3] > 0) return c; } return [255, 255, 255]; };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const faint = [...document.querySelectorAll("main *, nav *")].filter(own).map(e => { const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e)); return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + ": " + e.textContent.trim().slice(0, 40)]; }).filter(x => x[0] < 4.5);
  const wide = [...document.querySelectorAll("main *, nav *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre")).map(e => e.tagName + "." + e.className);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map(h => +h.tagName[1]);
  return {scroll: document.documentElement.scrollWidth, width: innerWidth, wide: wide.slice(0, 5), faint: faint.slice(0, 5),
    images: document.images.length, missing: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, wordless: [...document.images].filter(i => !i.alt.trim()).length,
    dead: [...document.querySelectorAll("a")].map(a => a.getAttribute("href")).filter(h => !h.startsWith("#") || !document.getElementById(h.slice(1))), nav: document.querySelectorAll("nav a").length,
    unreachable: [...document.querySelectorAll(".scroll, pre")].filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0).length,
    order: levels[0] === 1 && levels.every((l, i) => !i || l <= levels[i - 1] + 1), h1: levels.filter(l => l === 1).length, smallest: Math.min(...[...document.querySelectorAll("main *")].filter(own).map(e => parseFloat(getComputedStyle(e).fontSize))),
    lang: document.documentElement.lang, title: document.title, height: document.documentElement.scrollHeight};
})()"""


class Browser:
    "Chromium, spoken to through its debugging socket."

    def __init__(self, binary: str, folder: str):
        import websocket
        self.process = subprocess.Popen([binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*",
                                         f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, end = Path(folder) / "DevToolsActivePort", time.time() + 60
        while not (port_file.exists() and len(port_file.read_text().split()) > 1):
            if time.time() > end or self.process.poll() is not None:
                raise RuntimeError(f"{binary} did not start")
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # this machine, never through a proxy
        target = next(t for t in json.load(open_url(f"http://127.0.0.1:{port}/json")) if t["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60, http_no_proxy=["127.0.0.1"])
        self.last, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def value(self, code: str):
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except Exception:
            self.process.kill()


USED = """[...document.querySelectorAll("a[href], summary, [tabindex='0']")].filter(e => (e.offsetParent || e.className === "skip") && (e.tagName === "SUMMARY" || !e.closest("details:not([open])")))"""


def press(browser: Browser, key: str, code: int, text: str = "") -> None:
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **({"text": text} if text else {}))
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


def walk(browser: Browser) -> dict:
    "What is wrong when the page is used with the keyboard alone."
    n, first, frameless = browser.value(f"{USED}.length"), None, []
    for _ in range(n):
        press(browser, "Tab", 9)
        at = browser.value("(e => { e.dataset.met = 1; const s = getComputedStyle(e); return [e.getAttribute('href') || '', e.tagName + ': ' + e.textContent.trim().slice(0, 40), s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0]; })(document.activeElement)")
        first = at[0] if first is None else first
        frameless += [] if at[2] else [at[1]]
    missed = browser.value(f"{USED}.filter(e => !e.dataset.met).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40))")
    browser.value("document.querySelector('summary') && document.querySelector('summary').focus()")
    press(browser, "Enter", 13, "\r")
    opened = browser.value("!document.querySelector('summary') || document.querySelector('details').open")
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    return {"first Tab is not the skip link": first != "#main" and str(first), "Tab does not reach": missed[:3], "no frame around what has the focus": frameless[:3], "Enter does not open what is folded": not opened}


def look(browser: Browser, page: Path, width: int, scheme: str, shots: Path | None) -> list[str]:
    "What is wrong with the page in a window of this width and this colour scheme."
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser.call("Page.navigate", url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = browser.value(LOOK)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    keys = walk(browser)
    time.sleep(0.3)
    browser.value("0")
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
        browser.value("document.activeElement.blur()")
        height = browser.value("document.documentElement.scrollHeight")
        shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        (shots / f"{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    said = [e["params"] for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    loaded = [u for e in browser.events if e.get("method") == "Network.requestWillBeSent" and not (u := e["params"]["request"]["url"]).startswith(("data:", "file:"))]
    print(f"{width:5} px, {scheme:5}: {seen['images']} images, {seen['nav']} links in the list, {seen['height']} px high, smallest letters {seen['smallest']:.1f} px")
    wrong = {"scrolls sideways": seen["scroll"] > width or seen["wide"], "images missing": seen["missing"], "no images": not seen["images"], "images without words": seen["wordless"], "links that lead nowhere": seen["dead"],
             "no list of contents": not seen["nav"], "boxes that scroll and no key reaches": seen["unreachable"], "headings out of order": not seen["order"] or seen["h1"] != 1, "no language or title": not (seen["lang"] and seen["title"]),
             "faint text": seen["faint"], "letters under 11 px": seen["smallest"] < 11 and seen["smallest"], **keys, "console": said, "loaded": loaded}
    return [f"{width} px, {scheme}: {what}: {value}" for what, value in wrong.items() if value]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", nargs="?", type=Path, help="the page; left out: built from the notebook")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the whole page")
    a = parser.parse_args()
    binary = next((b for name in BROWSERS if (b := shutil.which(name))), None)
    if binary is None:
        print(f"skipped: the portfolio page was not looked at, there is no Chromium here (tried {', '.join(BROWSERS)})")
        return 0
    try:
        import websocket  # noqa: F401  (comes with JupyterLab)
    except ImportError:
        print('skipped: the portfolio page was not looked at, the package websocket-client is not installed (pip install -e ".[dev]")')
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        page = a.page or Path(tmp) / "index.html"
        if a.page is None:
            done = subprocess.run([sys.executable, "-m", "pocketguide.portfolio", "--html", page], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(f"the page could not be built: {done.stderr[-1500:]}")
                return 1
        if not page.is_file():
            print(f"error: there is no page ({page}): build it with make portfolio", file=sys.stderr)
            return 2
        wrong = [f"{page.stat().st_size} bytes, more than {LIMIT}"] if page.stat().st_size > LIMIT else []
        browser = Browser(binary, f"{tmp}/profile")
        try:
            for width in (390, 1280):
                for scheme in ("light", "dark"):
                    wrong += look(browser, page, width, scheme, a.shots)
        finally:
            browser.close()
    print("\n".join(wrong) or "the page is fit to be read")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
