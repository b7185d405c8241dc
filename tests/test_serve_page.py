"""serve/explore.py, and page.html used in a headless browser as a person would."""

import base64
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tinyroberta
from tinyroberta import demo
from tinyroberta.tasks.fill_mask import FillMask

pytest.importorskip("tokenizers")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browser import CHROMIUM, Browser, browsing
from server_process import Process, planted, serving

from tinyroberta.serve.explore import looked_at

TEXT = "She opened the <mask> and looked out at the <mask>."


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("-m", "tinyroberta", "serve", "--port", "0", "--backend", "numpy") as process:
        yield process
    assert process.errors == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_what_is_shown_is_what_the_model_computes() -> None:
    task = FillMask.from_pretrained(backend="numpy")
    (windows,) = task.read([TEXT], "error")
    assert not isinstance(windows, tinyroberta.Error)
    shown = looked_at(task, windows[0])
    model = demo.load(backend="numpy")
    output = model(np.array([windows[0].ids]), output_attentions=True, output_hidden_states=True)
    attention = np.frombuffer(base64.b64decode(shown["attention"]), np.uint8).reshape(4, 4, len(windows[0]), -1)
    assert np.abs(attention / 255 - np.concatenate(output.attentions)).max() <= 0.51 / 255
    for norms, states in zip(shown["norms"][:-1], output.hidden_states, strict=False):
        assert np.allclose(norms, np.linalg.norm(states[0], axis=-1), atol=1e-3)
    assert len(shown["norms"]) == len(shown["lens"]) == 5
    filled = task(TEXT, top_k=10)
    assert [windows[0].ids[n] for n in shown["masks"]] == [task.tokenizer.token_to_id("<mask>")] * 2
    for found, expected, place in zip(shown["candidates"], filled, shown["masks"], strict=True):
        assert [x["token"] for x in found] == [x["token_str"] for x in expected]
        assert [x["probability"] for x in found] == pytest.approx([x["score"] for x in expected], rel=1e-4)
        assert shown["lens"][-1][place] == found[:3]
    with tinyroberta.trace(model, [], {"encoder.layer.3": lambda _, x: output.hidden_states[0][0]}):  # noqa: ARG005
        first = model(np.array([windows[0].ids])).logits[0]
    assert [task.tokenizer.decode([int(row.argmax())]) for row in first] == [guesses[0]["token"] for guesses in shown["lens"][0]]
    assert shown["lens"][0] != shown["lens"][-1]


def test_what_the_page_asks_for(server: Process) -> None:
    assert server.ask("/explore/about", {})[2]["mask"] == "<mask>"
    assert server.ask("/explore/sentence", {"text": TEXT})[2]["masks"] == [4, 10]
    assert server.ask("/explore/sentence", {"text": "no mask"})[2]["candidates"] == []
    assert server.ask("/explore/sentence", {"text": "sea " * 70})[0] == 413
    assert server.ask("/explore/sentence", {"text": "sea " * 700})[0] == 413
    assert server.ask("/explore/sentence", {"text": ""})[0] == 400
    assert server.ask("/explore/sentence", {"text": ["a", "b"]})[0] == 413
    assert server.ask("/explore/sentence", b'{"text": "\\ud800"}')[0] == 422
    with ThreadPoolExecutor(8) as clients:  # as the page does for two sentences
        both = list(clients.map(lambda _: server.ask("/explore/sentence", {"text": TEXT}), range(16)))
    assert [status for status, _, _ in both] == [200] * 16
    assert all(answer == both[0][2] for _, _, answer in both)
    found = np.array(server.ask("/explore/similar", {"texts": ["a sea", "a train", "a sea"]})[2]["similarity"])
    assert found.shape == (3, 3)
    assert found[0, 2] == 1 != found[0, 1]
    assert server.ask("/explore/similar", {"texts": ["a"]})[0] == 422
    assert server.ask("/explore/similar", {"texts": ["a"] * 17})[0] == 413
    status, headers, page = server.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "http://" not in page
    assert "https://" not in page


def opened(browser: Browser, server: Process, width: int, dark: bool) -> None:
    browser.size(width, 800, dark)
    browser.console.clear()
    browser.send("Page.navigate", url=server.url)
    browser.wait("document.readyState === 'complete' && document.querySelector('#found')?.hidden === false")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_is_used(browser: Browser, server: Process, width: int, dark: bool) -> None:
    opened(browser, server, width, dark)
    assert browser.run("document.querySelectorAll('#words tbody tr').length") == 10
    assert browser.run("document.querySelectorAll('[role=radio]').length") == 16
    assert browser.run("document.activeElement === document.body")
    # another sentence, by the keyboard
    browser.run("document.querySelector('#a').focus(); document.querySelector('#a').value = 'The <mask> of <mask>.'")
    browser.press("Enter", "\r")
    browser.wait("document.querySelectorAll('#words table').length === 2 && !document.querySelector('#look').disabled")
    assert browser.run("document.querySelector('#status').textContent").startswith("The likeliest: ")
    # a head, by the mouse and then the arrows
    browser.click("[role=radio]:nth-child(6)")
    browser.wait("document.querySelector('.large figcaption').textContent.startsWith('Layer 2, head 2')")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    browser.wait("document.querySelector('.large figcaption').textContent.startsWith('Layer 3, head 3')")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "Layer 3, head 3"
    painted = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((x, n) => n % 4 === 3 && x > 100))"
    assert browser.run(f"[...document.querySelectorAll('canvas')].every({painted})")
    # two sentences side by side
    browser.click("#compare")
    browser.wait("document.querySelectorAll('.attention').length === 2 && !document.querySelector('#look').disabled")
    tops = browser.run("[...document.querySelectorAll('.words')].map(e => e.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (width > 960)
    # sentences that are alike
    browser.click("#measure")
    browser.wait("document.querySelectorAll('#similar td.heat').length === 25")
    # what is wrong is said
    browser.run("document.querySelector('#a').value = ''")
    browser.click("#look")
    browser.wait("document.querySelector('#status').classList.contains('bad')")
    assert "empty" in browser.run("document.querySelector('#status').textContent")
    assert browser.run("document.documentElement.scrollWidth") <= width  # only tables scroll sideways
    assert [line for line in browser.console if "400 (Bad Request)" not in line] == []


def test_the_page_is_for_everyone(browser: Browser, server: Process) -> None:
    for dark in (False, True):
        opened(browser, server, 1280, dark)
        assert browser.run("document.documentElement.lang") == "en"
        unnamed = "e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)"
        assert browser.run(f"[...document.querySelectorAll('button, input, textarea')].filter({unnamed}).length") == 0
        levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert browser.run(f"({CONTRASTS})()") == []
    browser.run("document.documentElement.style.setProperty('--faint', '#666')")  # on a dark page, and in its heat maps
    assert len(browser.run(f"({CONTRASTS})()")) > 10


CONTRASTS = """() => {  // texts whose contrast is below WCAG's 4.5, with a heat map's full shade behind those in its cells
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, n) => sum + x * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = e => {
    if (e.classList.contains("heat")) return rgb(getComputedStyle(e).getPropertyValue("--heat"));
    for (; e; e = e.parentElement) { const color = rgb(getComputedStyle(e).backgroundColor); if (color[3] === 255) return color; }
    return [255, 255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(e.outerHTML.slice(0, 80));
  }
  return bad;
}"""


def test_the_page_asks_for_a_key(browser: Browser) -> None:
    with planted(api_key="secret") as server:
        browser.size(800, 800)
        browser.send("Page.navigate", url=server.url)
        browser.wait("document.querySelector('#key-field')?.hidden === false")
        browser.run("document.querySelector('#key').value = 'secret'")
        browser.click("#look")
        browser.wait("document.querySelector('#found').hidden === false")
