"""The explorer in a real browser: from disk, and served with a real server behind its search."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from PIL import Image, ImageDraw
from support import tiny
from support.servers import Server, serve

import pixvec
from pixvec import dataset, explore
from pixvec_server import bundle
from pixvec_server.manifest import TextRecord, TokenizerRecord

playwright = pytest.importorskip("playwright.sync_api", reason="the explorer's tests need playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COUNT, CLASSES = 60, 4
NASTY = "<img src=x onerror=\"document.title = 'broken'\"><script>document.title = 'broken'</script>"
# The dots' colours; the first words of a model that knows no others.
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
# Where a row's point is on the screen.
POSITION = """(row) => {
  const view = Bokeh.index.get_one(chart.figure);
  const canvas = view.canvas_view.el.getBoundingClientRect();
  const { x, y } = chart.positionOf(row);
  return { x: canvas.left + view.frame.bbox.left + x, y: canvas.top + view.frame.bbox.top + y };
}"""
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH"),
]


class Marked:
    """A source of photographs, each with a dot that is marked; of a few classes, one of which is hostile."""

    kind = "marked"
    colours: Mapping[str, str] = {"class1": "#ff0000"}
    total: int | None = COUNT

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, i: int) -> Path:
        return self.folder / f"{i:03}.png"

    def pictures(self) -> Iterator[dataset.Picture]:
        for i in range(COUNT):
            corners = ((30.0, 45.0), (60.0, 20.0), (90.0, 45.0), (60.0, 70.0))
            label = f"class{i % CLASSES}" if i % CLASSES else NASTY
            objects = [dataset.Annotation("dot", label, (30, 20, 90, 70), 2000.0, corners)]
            if i == 5:
                objects.append(dataset.Annotation("other", "class2", (0, 0, 20, 20), 400.0))
            path = self.file(i)
            yield dataset.Picture(path.name, str(path), "1", partial(Path, path), objects=tuple(objects))


def draw(file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(90, 160, (90, 140, 3), np.uint8))
    colour = list(COLOURS.values())[seed % len(COLOURS)]
    ImageDraw.Draw(image).ellipse((30, 20, 90, 70), fill=colour)
    image.save(file)


def add_words(folder: Path) -> None:
    """Give the tiny model a text tower: a colour's word has the vector of a picture of that colour."""
    pixels = np.array([(127.5, 127.5, 127.5), *COLOURS.values()], np.float32) / 255
    centred = np.tile(pixels, (1, tiny.SIDE * tiny.SIDE)) - np.float32(0.5)
    constants = [
        onnx.numpy_helper.from_array(centred @ tiny.WEIGHTS, "table"),
        onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    nodes = [
        onnx.helper.make_node("Gather", ["table", "tokens"], ["vectors"]),
        onnx.helper.make_node("ReduceSum", ["vectors", "axis"], ["out_embedding"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "words",
        [onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ["n", 4])],
        [onnx.helper.make_tensor_value_info("out_embedding", onnx.TensorProto.FLOAT, ["n", tiny.SIZE])],
        constants,
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), str(folder / "text.onnx"))
    vocabulary = {"?": 0, **{word: 1 + i for i, word in enumerate(COLOURS)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    manifest = bundle.load(folder).manifest
    files = {name: bundle.record(folder / name) for name in ("text.onnx", "tokenizer.json")}
    text = TextRecord(tokenizer=TokenizerRecord(file="tokenizer.json", clean="lower", context=4))
    bundle.save(folder, manifest.model_copy(update={"text": text, "files": {**manifest.files, **files}}))


@pytest.fixture(scope="module")
def worded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny model with a text tower."""
    folder = tiny.write(tmp_path_factory.mktemp("bundles") / "worded")
    add_words(folder)
    with serve("--model", f"tiny={folder}") as running:
        yield running


@pytest.fixture(scope="module")
def found(worded_server: Server, tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    """A dataset of objects, embedded by a real server."""
    folder = tmp_path_factory.mktemp("explored")
    source = Marked(folder)
    for i in range(COUNT):
        draw(source.file(i), i)
    with pixvec.Client(worded_server.target) as client:
        settings = dataset.EmbedSettings(instances="objects")
        dataset.embed(source, folder / "photos & <b>dots", client, settings)
    return dataset.read(folder / "photos & <b>dots")


@pytest.fixture(scope="module")
def projections(found: dataset.Dataset) -> dict[str, Any]:
    """Points on a ring, so that none hides another, in the order of the rows."""
    turn = np.arange(len(found.rows)) * 2 * math.pi / len(found.rows)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return {"ring": ring, "turned": ring[:, ::-1]}


@pytest.fixture(scope="module")
def columns(found: dataset.Dataset) -> dict[str, Any]:
    rows = np.arange(len(found.rows))
    return {
        "cluster": rows % 3,
        "outlier": rows / len(rows),
        "neighbours": np.stack([(rows + step) % len(rows) for step in (1, 2, 3)], axis=1),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Visitor:
    """A page in the browser; remembers what went wrong, and what was asked of the network."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1360, "height": 820}, accept_downloads=True)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._said)
        self.page.goto(url)
        self.page.wait_for_function("() => chart.figure.inner_width > 0 && Bokeh.documents[0].is_idle")
        self.drawn()

    def drawn(self) -> None:
        """Wait until what was changed is painted."""
        self.page.evaluate(DRAWN)
        self.page.wait_for_timeout(100)

    def position(self, row: int) -> tuple[float, float]:
        place = self.page.evaluate(POSITION, row)
        return place["x"], place["y"]

    def click(self, row: int) -> None:
        self.page.mouse.click(*self.position(row))

    def is_painted(self, row: int) -> bool:
        """Tell whether there is any colour where a row's point is."""
        x, y = self.position(row)
        shot = self.page.screenshot(clip={"x": round(x) - 2, "y": round(y) - 2, "width": 4, "height": 4})
        with Image.open(io.BytesIO(shot)) as image:
            return bool(np.asarray(image.convert("RGB")).min() < 200)

    def lasso(self, rows: list[int], around: float = 18.0) -> None:
        """Draw a line around the points of neighbouring rows."""
        self.page.get_by_title("Lasso Select").click()
        places = [self.position(row) for row in rows]
        left, right = min(x for x, _ in places) - around, max(x for x, _ in places) + around
        top, bottom = min(y for _, y in places) - around, max(y for _, y in places) + around
        self.page.mouse.move(left, top)
        self.page.mouse.down()
        for corner in ((right, top), (right, bottom), (left, bottom), (left, top)):
            self.page.mouse.move(*corner, steps=6)
        self.page.mouse.up()
        self.page.wait_for_selector("#selection:not([hidden])")

    def selected(self, title: str) -> None:
        """Wait until a selection is shown under a title."""
        self.page.wait_for_function(
            "(it) => document.querySelector('#selected').textContent === it", arg=title
        )

    def download(self, button: str) -> str:
        with self.page.expect_download() as started:
            self.page.click(button)
        text: str = Path(started.value.path()).read_text(encoding="utf-8")
        return text

    def facts(self) -> dict[str, str]:
        terms, values = (self.page.locator(f"#facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(terms, values, strict=True))

    def _said(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.wrong.append(message.text)


@pytest.fixture(scope="module")
def folder(
    found: dataset.Dataset, projections: Any, columns: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    built = explore.build(found, projections, columns, tmp_path_factory.mktemp("page"))
    assert not built.missing
    return built.page


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Visitor]:
    """The page from disk; whatever a test does, nothing goes wrong and no other machine is asked."""
    visitor = Visitor(browser, folder.as_uri())
    yield visitor
    assert visitor.wrong == []
    assert {url.partition(":")[0] for url in visitor.asked} <= {"file", "data", "blob"}
    visitor.page.close()


def test_a_class_is_hidden_by_a_click_on_its_legend_entry(visit: Visitor) -> None:
    entries = visit.page.locator("#legend button")
    assert [text.splitlines()[0] for text in entries.all_inner_texts()] == [
        NASTY,
        "class1",
        "class2",
        "class3",
    ]
    assert visit.page.title() == "photos & <b>dots"
    assert visit.is_painted(1)
    entries.nth(1).click()
    visit.drawn()
    assert not visit.is_painted(1)
    assert visit.is_painted(2)
    visit.click(1)
    assert not visit.page.is_visible("#point"), "a hidden point was clicked"
    entries.nth(1).click()
    visit.drawn()
    assert visit.is_painted(1)
    entries.nth(1).dblclick()
    visit.drawn()
    assert visit.is_painted(1)
    assert not visit.is_painted(2)


def test_the_nearest_point_alone_is_told_of_under_the_mouse(visit: Visitor) -> None:
    x, y = visit.position(9)
    visit.page.mouse.move(x - 3, y)
    visit.page.mouse.move(x + 1, y, steps=3)
    visit.page.wait_for_selector("#tooltip img", state="visible")
    assert visit.page.inner_text("#tooltip") == NASTY
    assert visit.page.get_attribute("#tooltip img", "src") == "thumbs/9.jpg"
    visit.page.mouse.move(x + 60, y + 60)
    assert not visit.page.is_visible("#tooltip")


def test_a_point_that_is_clicked_is_shown_with_its_annotation(visit: Visitor, found: dataset.Dataset) -> None:
    visit.click(5)
    visit.page.wait_for_selector("#picture polygon")
    assert visit.facts() == {
        "id": "005.png",
        "object": "dot",
        "class": "class1",
        "cluster": "2",
        "outlier": "0.08197",
    }
    assert visit.page.get_attribute("#picture polygon", "points") == "30,45 60,20 90,45 60,70"
    assert visit.page.get_attribute("#picture polygon", "stroke") == "#ff0000"
    assert visit.page.get_attribute("#picture", "viewBox") == "0 0 140 90"
    visit.page.check("#zoom")
    visit.page.wait_for_selector("#picture[viewBox='15 7.5 90 75']", state="attached")
    visit.page.check("#all-objects")
    visit.page.wait_for_selector("#picture .other", state="attached")
    assert [found.rows[row].object for row in (5, 6)] == ["dot", "other"]
    assert visit.page.get_attribute("#picture .other", "points") == "0,0 20,0 20,20 0,20"
    near = visit.page.locator("#neighbours button")
    assert [near.nth(i).get_attribute("data-row") for i in range(near.count())] == ["6", "7", "8"]
    near.nth(2).click()
    visit.page.wait_for_function("() => document.querySelector('#facts dd').textContent === '007.png'")


def test_what_is_inside_a_lasso_is_listed_and_downloaded(visit: Visitor, found: dataset.Dataset) -> None:
    visit.lasso([10, 11, 12, 13])
    listed = visit.page.locator("#list button")
    rows = [int(listed.nth(i).get_attribute("data-row")) for i in range(listed.count())]
    assert rows == [10, 11, 12, 13]
    assert visit.page.inner_text("#selected") == "4 selected"
    told = dict(line.splitlines() for line in visit.page.locator("#counts li").all_inner_texts())
    labels = [found.rows[row].label for row in rows]
    assert told == {str(label): str(labels.count(label)) for label in labels}
    written = list(csv.DictReader(visit.download("#csv").splitlines()))
    assert [(one["id"], one["object"], one["class"]) for one in written] == [
        (found.rows[row].id, found.rows[row].object, found.rows[row].label) for row in rows
    ]
    kept = json.loads(visit.download("#json"))
    assert [str(one["index"]) for one in kept] == [one["index"] for one in written]
    assert set(kept[0]) == {"index", "id", "object", "x", "y", "class", "cluster", "outlier"}
    visit.page.click("#clear")
    assert not visit.page.is_visible("#selection")


def test_a_box_selects_and_hidden_classes_stay_out(visit: Visitor) -> None:
    visit.page.locator("#legend button").nth(1).click()
    visit.page.get_by_title("Box Select").click()
    visit.page.mouse.move(230, 60)
    visit.page.mouse.down()
    visit.page.mouse.move(960, 810, steps=10)
    visit.page.mouse.up()
    visit.page.wait_for_selector("#selection:not([hidden])")
    counts = dict(line.splitlines() for line in visit.page.locator("#counts li").all_inner_texts())
    assert "class1" not in counts
    assert len(counts) == 3


def test_colours_projections_and_dots_change(visit: Visitor) -> None:
    before = visit.position(0)
    visit.page.select_option("#projection", label="turned")
    visit.drawn()
    after = visit.position(0)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 50
    visit.page.select_option("#colouring", label="cluster")
    assert visit.page.locator("#legend .name").all_inner_texts() == ["0", "1", "2"]
    visit.page.select_option("#colouring", label="outlier")
    assert visit.page.locator("#legend li").count() == 7
    visit.page.fill("#dot-size", "20")
    visit.drawn()
    assert visit.is_painted(7)
    visit.click(7)
    visit.page.wait_for_selector("#point:not([hidden])")
    visit.page.fill("#filter", "0.9")
    assert 0 < visit.page.locator("#legend li:visible").count() < 7


def test_the_keyboard_goes_from_point_to_point(visit: Visitor) -> None:
    def shown(name: str) -> None:
        is_it = "(name) => document.querySelector('#facts dd').textContent === name"
        visit.page.wait_for_function(is_it, arg=name)

    visit.click(0)
    shown("000.png")
    visit.page.focus("#chart")
    for key, name in (("ArrowUp", "001.png"), ("ArrowUp", "002.png"), ("ArrowDown", "001.png")):
        visit.page.keyboard.press(key)
        shown(name)
    visit.page.keyboard.press("Escape")
    assert not visit.page.is_visible("#point")
    entry = visit.page.locator("#legend button").nth(2)
    entry.focus()
    visit.page.keyboard.press("Shift+Enter")
    pressed = visit.page.locator("#legend button[aria-pressed=true]")
    assert pressed.all_inner_texts() == entry.all_inner_texts()


@pytest.fixture(scope="module")
def served(
    browser: Any, found: dataset.Dataset, projections: Any, worded_server: Server
) -> Iterator[Visitor]:
    """The page of a dataset that was not analysed, served with a model of images and texts."""
    with (
        pixvec.Client(worded_server.target) as client,
        explore.serve(found, projections, {}, client=client) as explorer,
    ):
        visitor = Visitor(browser, explorer.url)
        yield visitor
        own = explorer.url.removesuffix("/")
        assert {url for url in visitor.asked if not url.startswith((own, "data:", "blob:"))} == set()
        visitor.page.close()


def test_an_image_is_searched_for_by_its_nearest_rows(served: Visitor, tmp_path: Path) -> None:
    Image.new("RGB", (60, 50), (10, 200, 30)).save(tmp_path / "wanted.png")
    served.page.set_input_files("#search-file", tmp_path / "wanted.png")
    served.selected("48 nearest to wanted.png")
    similarities = [float(text) for text in served.page.locator("#list .name").all_inner_texts()]
    assert similarities == sorted(similarities, reverse=True)
    assert served.wrong == []


def test_an_image_of_the_dataset_is_its_own_nearest(
    served: Visitor, found: dataset.Dataset, tmp_path: Path
) -> None:
    row = found.rows[20]
    assert row.box is not None
    with Image.open(row.uri) as image:
        image.crop(row.box).save(tmp_path / "own.png")
    served.page.set_input_files("#search-file", tmp_path / "own.png")
    served.selected("48 nearest to own.png")
    first = served.page.locator("#list button").first
    assert first.get_attribute("data-row") == "20"
    first.click()
    served.page.wait_for_selector("#picture polygon")
    assert served.facts()["id"] == row.id
    assert served.page.get_attribute("#picture", "viewBox") == "0 0 140 90"
    served.page.wait_for_function(
        "() => [...document.querySelectorAll('#list img')].slice(0, 8).every((one) => one.naturalWidth > 0)"
    )
    assert served.wrong == []


def test_an_image_may_be_dropped_on_the_map(served: Visitor, found: dataset.Dataset) -> None:
    served.page.evaluate(
        """(bytes) => {
          const dropped = new DataTransfer();
          dropped.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
          for (const kind of ["dragover", "drop"]) {
            document.querySelector("#chart").dispatchEvent(new DragEvent(kind, { dataTransfer: dropped }));
          }
        }""",
        list(Path(found.rows[0].uri).read_bytes()),
    )
    served.selected("48 nearest to dropped.png")


def test_what_is_no_image_is_said(served: Visitor, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("no image")
    served.page.set_input_files("#search-file", tmp_path / "odd.txt")
    served.page.wait_for_selector("#told.wrong")
    assert "image" in served.page.inner_text("#told")
    served.wrong.clear()  # the browser itself tells of the answer 400


def test_a_text_is_searched_for(served: Visitor, found: dataset.Dataset) -> None:
    served.page.fill("#wanted", "Green")
    served.page.keyboard.press("Enter")
    served.selected("48 nearest to “Green”")
    first = served.page.locator("#list button")
    ids = {found.rows[int(first.nth(i).get_attribute("data-row"))].id for i in range(10)}
    assert {list(COLOURS)[int(name.removesuffix(".png")) % 3] for name in ids} == {"green"}
    assert served.wrong == []


def test_texts_are_not_offered_for_a_model_of_images_alone(
    found: dataset.Dataset, projections: Any, tiny_server: Server
) -> None:
    with (
        pixvec.Client(tiny_server.target) as client,
        explore.serve(found, projections, {}, client=client) as page,
        urllib.request.urlopen(f"{page.url}data.js") as script,
    ):
        assert b'"search":{"texts":false}' in script.read()


def test_the_neighbours_of_a_point_are_asked_for(served: Visitor, found: dataset.Dataset) -> None:
    served.click(30)
    served.page.wait_for_selector("#neighbours button")
    near = served.page.locator("#neighbours button")
    rows = [int(near.nth(i).get_attribute("data-row")) for i in range(near.count())]
    vectors = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors[30]
    similarities[30] = -1
    assert similarities[rows] == pytest.approx(np.sort(similarities)[::-1][:12], abs=1e-6)
