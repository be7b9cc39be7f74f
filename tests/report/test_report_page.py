"""The report's page in a real browser: nothing fails, nothing is loaded, it works with the keyboard, in both colour schemes, at any width.

Needs Chromium (launch/build.sh --tests installs Debian's chromium-headless-shell) and playwright (tests/requirements.txt); skipped without.
"""

import shutil
import subprocess
import time

import pytest
import report_data as reference
from conftest import BUILD, need

BROWSERS = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
PAGES = {"merged": (6, 16, 0), "pruned": (3, 16, 1), "single": (1, 8, 0), "large": (60, 256, 0), "large_pruned": (60, 256, 1)}


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed (tests/requirements.txt)")
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if not found:
        pytest.skip("no Chromium here: launch/build.sh --tests installs chromium-headless-shell where Debian's packages have it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    made = {}

    def page(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("page") / f"{name}.html"
            subprocess.run([need(BUILD / "report_of_size"), *map(str, PAGES[name]), made[name]], check=True, timeout=300)
        return made[name]

    return page


@pytest.fixture
def opened(browser, pages):
    """opened(page or file, ...) -> the page in the browser. Whatever it complains about, or asks for, fails the test."""
    contexts, complaints = [], []

    def open_page(name, width=1440, height=900, scheme="light", fragment="", **options):
        file = pages(name) if name in PAGES else name
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.append(f"request: {request.url}") if request.url.split("#")[0] != file.as_uri() else None)
        page.goto(file.as_uri() + fragment, timeout=120_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def wait_until(page, expression: str):
    """playwright's own wait_for_function evaluates text, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def text_of(page, selector: str) -> str:
    return plain(page.locator(selector).inner_text())


@pytest.mark.parametrize("name", PAGES)
def test_every_part_is_there(opened, pages, name):
    page, data = opened(name), reference.data_of(pages(name))
    layers, experts, pruned = PAGES[name]
    assert f"{experts} → {experts // 2} experts a layer" in text_of(page, "h1")
    cards = text_of(page, "#cards")
    for part in ("1.3 TB → 700 GB", f"{experts} → {experts // 2}", "50 → 10 %", "2.5 → 3.5", "90.0 %", "39 min 06 s"):
        assert part in cards
    for part in ("facts", "advice"):
        assert [plain(text) for text in page.locator(f"#{part} li").all_inner_texts()] == data[part]
    assert page.locator("#layers option").count() == layers
    assert page.locator("#overview figure").count() == 2
    assert page.locator("#layer canvas").count() == 1
    titles = page.locator("#layer h3").all_inner_texts()
    assert ("Merge tree and distances" in titles) == (not pruned) and ("Cluster sizes" in titles) == (not pruned)
    assert {"Usage before", "Usage after", "Other numbers of experts, this layer"} <= set(titles)
    assert page.locator("#layer .branch").count() == experts - 1
    assert page.locator("#layer .branch.joined").count() == (0 if pruned else experts // 2)
    assert page.locator("#layer .cut").count() == (1 if pruned else 3), "one in the tree, one in each curve"
    page.locator("#layer details").last.locator("summary").click()
    assert page.locator("#layer details").last.locator("tbody tr").count() == experts // 2


def test_names_are_text(opened):
    page = opened("merged")
    assert "<img src=x onerror='document.title=1'>" in text_of(page, "h1")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.title().startswith("model</script><img")
    assert "<img src=x" in text_of(page, "#quality") and "a note</script>" in text_of(page, "#notes")


@pytest.mark.parametrize("width", [360, 768, 1440, 2200])
@pytest.mark.parametrize("name", ["merged", "pruned", "large"])
def test_fits(opened, name, width):
    """Nothing sticks out of the page, no figure out of its panel, and no text is smaller than can be read."""
    page = opened(name, width=width, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    beyond = page.evaluate("""[...document.querySelectorAll('.panel svg, .panel canvas, .card *')].filter((node) => {
        const box = node.getBoundingClientRect(), around = node.closest('.panel, .card').getBoundingClientRect();
        return box.width > 0 && (box.left < around.left - 1 || box.right > around.right + 1);
    }).map((node) => node.outerHTML.slice(0, 120))""")
    assert beyond == []
    small = page.evaluate("""[...document.querySelectorAll('p, li, td, th, dt, dd, h1, h2, h3, text, output, button, select')]
        .filter((node) => node.textContent.trim() && parseFloat(getComputedStyle(node).fontSize) * (node.ownerSVGElement
            ? node.ownerSVGElement.getBoundingClientRect().width / node.ownerSVGElement.viewBox.baseVal.width : 1) < 9.9)
        .map((node) => node.outerHTML.slice(0, 120))""")
    assert small == []


def test_draws_anew_for_another_width(opened):
    page = opened("merged", width=1440)
    page.set_viewport_size({"width": 420, "height": 800})
    wait_until(page, "Number(document.querySelector('#map-figure svg').getAttribute('width')) < 400")
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_keyboard(opened, pages):
    page = opened("merged")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("""(() => { const node = document.activeElement; return [node.id || node.className || node.tagName,
            parseFloat(getComputedStyle(node).outlineWidth) >= 2 && getComputedStyle(node).outlineStyle !== 'none']; })()"""))
        if seen[-1][0] == "BODY":
            break
    names = [name for name, _ in seen]
    assert names[0] == "skip" and {"theme", "layers", "next"} <= set(names) and names.count("map") >= 6, names
    assert all(outlined for name, outlined in seen if name != "BODY"), "the focus can be seen everywhere"

    def focus_figure(title):
        page.locator("figure", has=page.locator("h3", has_text=title)).locator(".map").focus()

    def readout(title):
        return page.locator("figure", has=page.locator("h3", has_text=title)).locator("output").inner_text().replace("\u00a0", " ")

    focus_figure("Output error of each block")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert readout("Output error of each block").startswith("Layer 2: output error 50.0 % as merged")
    page.keyboard.press("Enter")
    assert text_of(page, "#layer-title") == "Layer 2" and page.url.endswith("#layer-2")
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert text_of(page, "#layer-title") == "Layer 3" and page.locator("#layers").input_value() == "3"
    page.locator("#layers").focus()
    page.keyboard.press("ArrowDown")
    assert text_of(page, "#layer-title") == "Layer 4"
    page.keyboard.press("End")
    assert text_of(page, "#layer-title") == "Layer 5" and page.locator("#next").is_disabled()

    layer = reference.data_of(pages("merged"))["layers"][5]
    order, matrix = layer["order"], reference.shown_distances(layer)
    focus_figure("Merge tree and distances")
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    words = readout("Merge tree and distances")
    assert words.startswith(f"Experts {order[2]} (") and f" and {order[1]} (" in words
    assert float(words.rsplit(" ", 1)[1]) == pytest.approx(matrix[order[2], order[1]], rel=6e-3)

    focus_figure("Other numbers of experts, this layer")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    words = readout("Other numbers of experts, this layer")
    assert words.startswith("4 experts (weights 400 GB): differences inside clusters ")
    assert float(words.split("clusters ")[1].split(" %")[0]) == pytest.approx(100 * layer["spread"][3], rel=6e-3)
    assert float(words.rsplit(" ", 1)[1]) == pytest.approx(layer["tree"][16 - 4 - 1][2], rel=6e-3)

    focus_figure("Usage before")
    page.keyboard.press("End")
    share = layer["usage"][order[-1]] / sum(layer["usage"])
    assert readout("Usage before").startswith(f"Expert {order[-1]}: {100 * share:.2f} %"[:-4])


def test_pointer_and_links(opened):
    page = opened("merged", fragment="#layer-4")
    assert text_of(page, "#layer-title") == "Layer 4"
    chart = page.locator("#overview .map").first
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] - 20, "y": box["height"] / 2})
    assert text_of(page, "#layer-title") == "Layer 5"
    page.locator("#map-figure .map").hover(position={"x": 200, "y": 400})
    assert "distance" in text_of(page, "#map-figure output") or "Expert" in text_of(page, "#map-figure output")


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => { for (let n = node; n; n = n.parentElement) { const c = getComputedStyle(n).backgroundColor; if (!c.endsWith(', 0)')) return parse(c); } return [255, 255, 255]; };
  return [...document.querySelectorAll('p, li, td, th, dt, .value, .detail, h1, h2, h3, output, button:enabled, select, summary, svg text')]
    .filter((node) => node.textContent.trim() && node.getClientRects().length)
    .map((node) => { const style = getComputedStyle(node), ink = parse(node.ownerSVGElement ? style.fill : style.color);
      const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x); return [(a + 0.05) / (b + 0.05), node.textContent.slice(0, 40)]; })
    .filter(([ratio, text]) => ratio < 4.5); })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colour_schemes(opened, scheme):
    page = opened("merged", scheme=scheme)
    theme = lambda: page.evaluate("document.documentElement.dataset.theme")  # noqa: E731
    assert theme() == scheme
    assert page.evaluate(CONTRAST) == [], "text is readable (WCAG AA: 4.5 to 1)"
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    wait_until(page, f"document.documentElement.dataset.theme !== '{scheme}'")  # follows the system ...
    page.locator("#theme").click()
    assert theme() == scheme, "... until the reader chooses"
    assert page.evaluate(CONTRAST) == []
    page.emulate_media(color_scheme=scheme)
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert theme() == scheme


def test_heat_map_colours(opened):
    """The order of distances is an order of lightness, for every kind of colour vision; and the map has the colours of the distances."""
    page = opened("merged")
    colours = page.evaluate("Array.from({ length: 256 }, (_, i) => colour(i / 255))")
    visions = {
        "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }  # Machado, Oliveira, Fernandes 2009, severity 1
    for vision, matrix in visions.items():
        lightness = []
        for colour in colours:
            linear = [(v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in colour]
            seen = [max(0, sum(m * v for m, v in zip(row, linear))) for row in matrix]
            lightness.append(0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2])
        steps = [b - a for a, b in zip(lightness, lightness[1:])]
        assert min(steps) > -1e-3 and lightness[-1] - lightness[0] > 0.6, vision
        assert all(lightness[i + 16] > lightness[i] for i in range(240)), vision
    found = page.evaluate("""(() => { const layer = layers[0], canvas = document.querySelector('#map-figure canvas'), E = layer.experts;
        const size = canvas.width, pixels = canvas.getContext('2d').getImageData(0, 0, size, size).data;
        const at = (i, j) => [...pixels.slice(4 * (Math.floor((i + 0.5) * size / E) * size + Math.floor((j + 0.5) * size / E))).slice(0, 3)];
        const d = distancesOf(layer); return layer.order.flatMap((e, i) => layer.order.map((f, j) => [at(i, j), e === f ? colour(0) : colour(d.code(e, f) / 255)])); })()""")
    assert all(shown == expected for shown, expected in found)


def test_accessible_names(opened):
    page = opened("merged")
    assert page.evaluate("""[...document.querySelectorAll('button, select, svg[role=img], [role=region]')].filter((node) =>
        !(node.getAttribute('aria-label') || node.getAttribute('aria-labelledby') || node.textContent.trim() || (node.labels || []).length)).length""") == 0
    levels = [int(level) for level in page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => node.tagName[1])")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


def test_print(opened, tmp_path):
    page = opened("merged", scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate("[...document.querySelectorAll('details')].every((node) => node.open)")
    page.emulate_media(media="print")
    assert not page.locator("#theme").is_visible() and page.locator("#facts").is_visible()
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
