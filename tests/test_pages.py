"""The pages: their headers, and what a person gets in a browser (headless Chromium)."""

from __future__ import annotations

import ast
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from embedserve.api import pages
from tests import programs, tiny
from tests.conftest import Server, Start

PAGES = ("/", "/docs", "/openapi.json")
WIDTHS = {"wide": 1400, "tablet": 800, "phone": 360}
LONG = " ".join("abcd" * 3)  # 14 tokens with the special ones, of which 8 are run
KEY, OTHER = "sk-page-0123456789", "sk-other-9876543210"
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Every text on the page whose contrast with its ground is under WCAG's 4.5 (AA).
LOW_CONTRAST = """
const channels = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92
    : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(at).backgroundColor);
    if (alpha > 0) return [r, g, b];
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll('body *')].filter((element) =>
  element.checkVisibility() && !element.disabled && !element.closest('option, script, style, title')
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).flatMap((element) => {
  const style = getComputedStyle(element);
  const ink = channels(element.closest('svg') ? style.fill : style.color).slice(0, 3);
  const [low, high] = [luminance(ink), luminance(ground(element))].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  return ratio < 4.5 ? [`${element.tagName} ${element.textContent.slice(0, 30)}: ${ratio}`] : [];
});
"""

# Pairs of labels of the scatter plot that overlap, and labels outside its frame.
BAD_LABELS = """
const texts = [...document.querySelectorAll('#plot g text')];
const boxes = texts.map((text) => text.getBoundingClientRect());
const frame = document.querySelector('#plot .frame').getBoundingClientRect();
const bad = [];
boxes.forEach((a, i) => {
  if (a.left < frame.left || a.right > frame.right || a.top < frame.top || a.bottom > frame.bottom)
    bad.push(texts[i].textContent + ' is outside');
  boxes.forEach((b, j) => {
    // A line's box has leading above and below its letters: a pixel or two of it may meet.
    const across = a.left < b.right && b.left < a.right;
    if (j > i && across && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
      bad.push(texts[i].textContent + ' touches ' + texts[j].textContent);
  });
});
return bad;
"""


@pytest.mark.parametrize("name", ["playground", "docs"])
def test_source(name: str) -> None:
    """Style and script are files of their own; the page that is sent has both inside, once."""
    folder = Path(pages.__file__).parents[1] / "page"
    whole = pages.whole(f"{name}.html")
    for part in (f"{name}.css", f"{name}.js"):
        assert whole.count((folder / part).read_text(encoding="utf-8")) == 1
    assert re.findall(r'(?:src|href)="([^"#:]+\.(?:js|css))"', whole) == []


@pytest.mark.parametrize("name", ["playground", "docs"])
def test_script_is_javascript(name: str) -> None:
    """As node reads it."""
    node = programs.need("node", package="nodejs")
    script = Path(pages.__file__).parents[1] / "page" / f"{name}.js"
    done = subprocess.run([node, "--check", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Browser:
    """Chromium on one server's pages, and what it logged."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.expected_errors: list[str] = []
        self.hosts: set[str] = set()

    def open(self, url: str, *, width: int = 1400, theme: str = "light") -> None:
        """Open a page at a width, in a theme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.hosts.add(_host(url))
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements of a CSS selector."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.driver.execute_script(script, selector))

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def until_embedded(self, n: int) -> None:
        """Wait until the page says that n lines are embedded."""
        said = re.compile(rf"{n} lines? embedded in [\d.]+ ms\.")
        self.until(lambda: said.fullmatch(self.find("#status").text))

    def embed(self, *lines: str) -> None:
        """Put lines into the field, as a paste does, and press the button."""
        self.run("document.querySelector('#status').textContent = ''")
        script = """const field = document.querySelector('#lines');
            field.value = arguments[0]; field.dispatchEvent(new Event('input'))"""
        self.driver.execute_script(script, "\n".join(lines))
        self.find("#go").click()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        self.find(f'{selector} option[value="{value}"]').click()

    def keys(self, *keys: str, held: str | None = None) -> None:
        """Press keys wherever the focus is."""
        chain = ActionChains(self.driver)
        if held:
            chain.key_down(held)
        chain.send_keys(*keys)
        if held:
            chain.key_up(held)
        chain.perform()

    def check(self) -> None:
        """Nothing unexpected on the console, and no request to another host."""
        errors = [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        left = [e for e in errors if not any(known in e for known in self.expected_errors)]
        assert not left
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        urls = {
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        }
        hosts = {_host(url) for url in urls if not url.startswith("data:")}
        assert hosts <= self.hosts


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    chromium = programs.need("chromium", package="chromium")
    chromedriver = programs.need("chromedriver", package="chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield started
    started.quit()


@pytest.fixture
def browser(driver: webdriver.Chrome) -> Iterator[Browser]:
    """The browser; at the end its console is empty and every request went to the server."""
    driver.get("about:blank")
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # type: ignore[no-untyped-call]
    made = Browser(driver)
    yield made
    made.check()


def cosines(*lines: str) -> list[list[float]]:
    """Similarities of lines of known words, by hand."""
    rows = np.stack([tiny.expected(" ".join(line.split()[:6])) for line in lines])
    values: list[list[float]] = (rows @ rows.T).tolist()
    return values


def numbers(browser: Browser) -> list[list[float]]:
    """The heat map's cells."""
    rows = browser.run(
        """return [...document.querySelectorAll('#heat tbody tr')].map(
        (row) => [...row.querySelectorAll('td')].map((cell) => cell.textContent))"""
    )
    return [[float(cell.replace("−", "-")) for cell in row] for row in rows]


class TestHeaders:
    """What the pages are served with."""

    @pytest.mark.parametrize("path", PAGES)
    def test_security(self, server: Server, path: str) -> None:
        """No page can be framed, sniffed or made to load what is not its own."""
        with server.client() as client:
            answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        for directive in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
            assert directive in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"

    @pytest.mark.parametrize("path", PAGES)
    def test_head(self, server: Server, path: str) -> None:
        """HEAD has GET's headers and no body."""
        with server.client() as client:
            get, head = client.get(path), client.head(path)
        assert head.content == b""
        own = ("date", "x-request-id")
        assert [(k, v) for k, v in get.headers.items() if k not in own] == [
            (k, v) for k, v in head.headers.items() if k not in own
        ]

    @pytest.mark.parametrize("path", PAGES)
    @pytest.mark.parametrize(
        ("form", "status"),
        [
            ("{}", 304),
            ("W/{}", 304),
            ('"other", {}', 304),
            ("*", 304),
            ('"other"', 200),
            ("", 200),
        ],
        ids=["same", "weak", "list", "any", "other", "empty"],
    )
    def test_etag(self, server: Server, path: str, form: str, status: int) -> None:
        """A client that has the page is not sent it again."""
        with server.client() as client:
            etag = client.get(path).headers["etag"]
            answer = client.get(path, headers={"if-none-match": form.format(etag)})
        assert answer.status_code == status
        assert answer.headers["etag"] == etag
        assert bool(answer.content) == (status == 200)

    @pytest.mark.parametrize("path", PAGES)
    def test_other_methods(self, server: Server, path: str) -> None:
        """Only GET and HEAD; the refusal is this service's error object."""
        with server.client() as client:
            answer = client.post(path)
        assert answer.status_code == 405
        assert answer.json()["error"]["code"] == "method_not_allowed"
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}

    def test_inline_code_is_allowed_by_hash(self) -> None:
        """Each inline script and style is allowed by its own hash; a changed one would not be."""
        text = "<style>p { margin: 0 }</style><script>go()</script>"
        policy = pages.html(text).headers["Content-Security-Policy"]
        assert f"script-src {pages.csp_hash('go()')};" in policy
        assert f"style-src {pages.csp_hash('p { margin: 0 }')};" in policy
        assert pages.csp_hash("go( )") not in policy

    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_self_contained(self, server: Server, path: str) -> None:
        """A page names no other host; the one URL in it is SVG's name for itself."""
        with server.client() as client:
            text = client.get(path).text
        assert set(re.findall(r"https?://[\w./]*", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)=[\"'](?!data:)", text)


class TestPlayground:
    """GET /: lines in, pictures, tokens, timing and the client's lines out."""

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_embeds_and_draws(self, server: Server, browser: Browser, theme: str) -> None:
        """Similarities, points, tokens, cuts, times and fingerprint are those of the lines."""
        browser.open(server.url, theme=theme)
        browser.until_embedded(9)  # what is in the field at first
        lines = ("a b", "c", LONG)
        browser.embed("a b", "", "c", "   ", LONG)
        browser.until_embedded(3)
        np.testing.assert_allclose(numbers(browser), cosines(*lines), atol=0.0051)
        assert len(browser.texts("#plot circle")) == 3
        assert browser.texts("#plot title") == [f"{i + 1}: {line}" for i, line in enumerate(lines)]
        tokens = browser.texts("#line-list li:first-child .tokens li")
        assert tokens == ["[CLS]", "a", "b", "[SEP]"]
        assert browser.texts("#line-list .cut") == ["cut: 6 of 14 tokens left out"]
        assert "4 tokens" in browser.texts("#line-list .count")[0]
        facts = browser.find("#facts").text
        fingerprint = server.embed(model="tiny", input="a").headers["x-embedding-fingerprint"]
        assert fingerprint in facts
        assert re.search(r"Request id\s+req_", facts)
        assert all(re.fullmatch(r"[\d.]+ ms", text) for text in browser.texts("[data-time]"))
        assert re.fullmatch(r"[\d.]+ ms in all", browser.find("#total").text)
        assert browser.run(LOW_CONTRAST) == []
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        shade = sum(map(int, re.findall(r"\d+", ground)))
        assert shade < 120 if theme == "dark" else shade > 700

    @pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
    def test_first_sight(self, minilm: Server, browser: Browser, width: int) -> None:
        """The lines it starts with fit any width, and their labels do not touch."""
        browser.open(minilm.url, width=width)
        browser.until_embedded(9)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        scroll = "const s = document.querySelector('#heat .scroll'); "
        assert browser.run(f"{scroll} return s.scrollWidth <= s.clientWidth")
        assert browser.run(BAD_LABELS) == []
        assert len(browser.texts("#plot g text")) == 9
        values = np.array(numbers(browser))
        assert values[0, 1] > 0.5 > 0.2 > values[0, 8]  # passwords are not share prices

    def test_many_lines(self, server: Server, browser: Browser) -> None:
        """A hundred lines: a picture first, numbers on request; more than 300 are declined."""
        browser.open(server.url)
        browser.until_embedded(9)
        browser.embed(*(" ".join("abcd"[(i >> k) & 3] for k in (0, 2, 4)) for i in range(100)))
        browser.until_embedded(100)
        assert len(browser.texts("#plot circle")) == 100
        assert browser.run("return document.querySelector('#heat canvas').width") >= 100
        browser.find("#numbers").click()
        assert np.shape(numbers(browser)) == (100, 100)
        browser.embed(*["a"] * 301)
        browser.until(lambda: "at most 300" in browser.find("#status").text)

    def test_keyboard_alone(self, server: Server, browser: Browser) -> None:
        """Every control is reached by Tab, shows its focus, has a name, and works."""
        browser.open(server.url)
        browser.until_embedded(9)
        seen = [browser.driver.switch_to.active_element.get_attribute("id")]
        wanted = ["model", "lines", "prompt", "dimensions", "truncate", "go", "numbers", "stretch"]

        def tab_to(identity: str) -> None:
            for _ in range(20):
                browser.keys(Keys.TAB)
                at = browser.driver.switch_to.active_element
                assert at.accessible_name
                style = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none"
                seen.append(at.get_attribute("id"))
                if seen[-1] == identity:
                    return
            raise AssertionError(f"Tab does not reach {identity}: {seen}")

        tab_to("model")
        browser.keys("m")  # matryoshka
        browser.until(lambda: browser.find("#dimensions").is_enabled())
        tab_to("lines")
        browser.keys("a", held=Keys.CONTROL)
        browser.keys("b c", Keys.ENTER, "d")
        tab_to("prompt")
        browser.keys("q")  # query: "a "
        tab_to("dimensions")
        browser.keys("a", held=Keys.CONTROL)
        browser.keys("3")
        browser.keys(Keys.ENTER, held=Keys.CONTROL)
        browser.until_embedded(2)
        rows = np.stack([tiny.expected("a b c"), tiny.expected("a d")])[:, :3]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(numbers(browser), rows @ rows.T, atol=0.0051)
        assert re.search(r"Dimensions\s+3", browser.find("#facts").text)
        tab_to("stretch")
        browser.keys(Keys.SPACE)
        assert browser.find("#stretch").is_selected()
        browser.keys(Keys.TAB)  # the heat map
        browser.keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
        assert browser.find("#readout").text.startswith(f"{(rows @ rows.T)[1, 0]:.4f} between 2")
        assert [name for name in seen if name in wanted] == wanted

    def test_error(self, server: Server, browser: Browser) -> None:
        """A server's error stands there readably, with the line it is about, until it is mended."""
        browser.expected_errors.append("the server responded with a status of 400")
        browser.open(server.url)
        browser.until_embedded(9)
        browser.choose("#truncate", "error")
        browser.embed("a", "", LONG)
        browser.until(lambda: browser.find("#error").is_displayed())
        said = browser.find("#error").text
        assert "The server refused: 400 context_length_exceeded" in said
        assert "input[1] has 14 tokens" in said
        assert re.search(r"Parameter\s+input\[1\]", said)
        assert re.search(r"Request id\s+req_\w+", said)
        assert not browser.find("#drawn").is_displayed()
        assert browser.find("#error").get_attribute("role") == "alert"
        assert browser.run(LOW_CONTRAST) == []
        browser.find("#error button").click()  # go to the line
        selected = "const f = document.activeElement; return f.value.slice(f.selectionStart)"
        assert browser.run(selected) == LONG
        browser.embed("a", "b")
        browser.until_embedded(2)
        assert not browser.find("#error").is_displayed()

    def test_server_gone(self, start: Start, tiny_artifacts: Path, browser: Browser) -> None:
        """No answer at all is said too."""
        own = start(tiny_artifacts.parent / "models.toml", tiny_artifacts)
        browser.open(own.url)
        browser.until_embedded(9)
        own.stop()
        browser.expected_errors.append("ERR_CONNECTION_REFUSED")
        browser.embed("a")
        browser.until(lambda: browser.find("#error").is_displayed())
        assert "The server cannot be reached" in browser.find("#error").text

    def test_api_key(
        self, start: Start, tiny_artifacts: Path, tmp_path: Path, browser: Browser
    ) -> None:
        """A key given to the browser serves the page's requests; a withdrawn one is explained."""
        keys = tmp_path / "keys"
        keys.write_text(KEY, encoding="utf-8")
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts, "--api-keys-file", str(keys))
        browser.expected_errors.append("the server responded with a status of 401")
        browser.open(server.url.replace("://", f"://any:{KEY}@"))
        browser.until_embedded(9)
        assert "Authorization: Bearer $EMBEDSERVE_KEY" in browser.find("#curl").text
        assert KEY not in browser.run("return document.documentElement.outerHTML")
        keys.write_text(OTHER, encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        browser.until(lambda: "keys reloaded" in server.log.read_text(encoding="utf-8"))
        browser.embed("a")
        browser.until(lambda: browser.find("#error").is_displayed())
        said = browser.find("#error").text
        assert "This server asks for an API key" in said
        assert "Reload this page" in said

    def test_client_lines(self, server: Server, browser: Browser) -> None:
        """The curl and Python lines make the request that the page makes, whatever the text."""
        lines = ['it\'s "quoted" \\ $HOME `id` 🙂', "<img src=x onerror=alert(1)>", "é\u2028b"]
        browser.open(server.url)
        browser.until_embedded(9)
        browser.choose("#model", "matryoshka")
        browser.until(lambda: browser.find("#dimensions").is_enabled())
        browser.choose("#prompt", "query")
        browser.find("#dimensions").clear()
        browser.find("#dimensions").send_keys("2")
        browser.embed(*lines)
        browser.until_embedded(3)
        wanted = {"model": "matryoshka", "input": lines, "prompt_name": "query", "dimensions": 2}
        curl = shlex.split(browser.run("return document.querySelector('#curl').textContent"))
        assert curl[:3] == ["curl", "-s", f"{server.url}/v1/embeddings"]
        body = curl[curl.index("-d") + 1]
        assert json.loads(body) == wanted
        headers = {"content-type": curl[curl.index("-H") + 1].partition(": ")[2]}
        answer = httpx.post(curl[2], content=body, headers=headers, trust_env=False)
        assert answer.status_code == 200
        program = browser.run("return document.querySelector('#python').textContent")
        calls = [n for n in ast.walk(ast.parse(program)) if isinstance(n, ast.Call)]
        sent = next({k.arg: k.value for k in c.keywords} for c in calls if len(c.keywords) > 3)
        values = {name: ast.literal_eval(value) for name, value in sent.items() if name}
        assert values.pop("extra_body") | values == wanted
        assert f'base_url="{server.url}/openai/v1"' in program
        assert browser.driver.find_elements(By.TAG_NAME, "img") == []
        assert browser.texts("#line-list .text") == lines

    def test_copy(self, server: Server, browser: Browser) -> None:
        """The button copies the lines, or selects them where copying is not allowed."""
        browser.open(server.url)
        browser.until_embedded(9)
        browser.find('[data-copy="curl"]').click()
        browser.until(
            lambda: browser.find("#status").text in ("Copied.", "Selected; copy it with Ctrl+C.")
        )


class TestDocs:
    """GET /docs: the description, readable."""

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
    def test_renders(self, server: Server, browser: Browser, width: int, theme: str) -> None:
        """Each operation, field and error code is there, at every width and in both themes."""
        document = pages.openapi(max_inputs=2048)
        browser.open(f"{server.url}/docs", width=width, theme=theme)
        browser.until(lambda: browser.texts("#errors"))
        shown = list(zip(browser.texts("h3 .method"), browser.texts("h3 .path"), strict=True))
        listed = [(m.upper(), p) for p, item in document["paths"].items() for m in item]
        assert sorted(shown) == sorted(listed)
        codes = browser.texts("#errors .codes code")
        error = document["components"]["schemas"]["Error"]["properties"]["error"]
        assert codes == error["properties"]["code"]["enum"]
        request = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]
        fields = browser.texts("#post-v1-embeddings dt code")
        assert set(request) <= set(fields)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert browser.run(LOW_CONTRAST) == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")

    def test_links(self, server: Server, browser: Browser) -> None:
        """Each entry of the menu leads to its section, by keyboard too."""
        browser.open(f"{server.url}/docs")
        browser.until(lambda: browser.texts("#errors"))
        targets = browser.run(
            """return [...document.querySelectorAll('#routes a')].map(
            (a) => [a.textContent, Boolean(document.querySelector(a.getAttribute('href')))])"""
        )
        assert len(targets) > 10
        assert [name for name, there in targets if not there] == []
        browser.keys(Keys.TAB)  # skip to the description
        assert browser.driver.switch_to.active_element.text == "Skip to the description"
        browser.keys(Keys.ENTER)
        assert browser.run("return location.hash") == "#main"
