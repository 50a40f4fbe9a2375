"""The explorer's page: groups and colours, escaping, images, and what its server refuses."""

from __future__ import annotations

import base64
import http.client
import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, features

from pixvec import InputError, dataset, explore
from pixvec.dataset._images import Cache, Images
from pixvec.explore import _columns
from pixvec.explore._nearest import Neighbourhoods
from pixvec.explore._page import as_script, data_of
from pixvec.explore._server import CACHE_BYTES, MAX_TEXT_BYTES, Site, is_ours

RED, BLUE = (230, 20, 20), (20, 20, 230)
LABEL = "</script><script>alert(1)</script>"


def row(uri: Path, name: str = "a.png", **more: Any) -> dataset.Row:
    return dataset.Row(id=name, uri=str(uri), stamp="1", made="m", **more)


def photos(folder: Path, rows: list[dataset.Row], **about: Any) -> dataset.Dataset:
    return dataset.Dataset(folder, tuple(rows), np.zeros((len(rows), 4), np.float32), (), about)


def images_of(*rows: dataset.Row) -> Images:
    return Images(list(rows), {})


def points(count: int) -> dict[str, Any]:
    return {"UMAP": np.arange(2 * count, dtype=np.float32).reshape(count, 2)}


def turned_photo(file: Path) -> Path:
    """A JPEG of 40 x 20 pixels whose tag turns it a quarter: red above blue once it is upright."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, exif=exif, quality=95)
    return file


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


def is_near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(image.getpixel(place), colour)).max() < 40)  # type: ignore[arg-type]


def data_script(found: dataset.Dataset, projections: Any, columns: Any) -> bytes:
    return as_script(data_of(found, projections, columns))


def told(script: bytes) -> Any:
    return json.loads(script.decode().removeprefix("const data = ").removesuffix(";\n"))


def test_classes_beyond_the_most_are_folded_into_other() -> None:
    labels = [f"class{i}" for i in range(300) for _ in range(2 if i >= 10 else 1)]
    column = _columns.class_column(labels, {})
    assert len(column.groups) == 250
    assert column.groups[-1].name == "Other"
    assert len(column.names) == 300
    kept = {group.name for group in column.groups}
    assert not kept & {f"class{i}" for i in range(10)}, "the rarest are folded"
    folded = [labels[i] for i in np.flatnonzero(column.group == 249)]
    assert len(set(folded)) == 51
    assert [column.names[code] for code in column.codes] == labels


def test_as_many_classes_as_there_may_be_are_not_folded() -> None:
    column = _columns.class_column([f"class{i}" for i in range(250)], {})
    assert len(column.groups) == 250
    assert "Other" not in {group.name for group in column.groups}


def test_classes_have_the_colours_of_the_dataset_and_different_ones_where_it_has_none() -> None:
    labels = ["cat", "dog", None, "class10", "class9", "odd"]
    column = _columns.class_column(labels, {"cat": "#1f77b4", "odd": "url(http://example.com)"})
    colours = {group.name: group.colour for group in column.groups}
    assert list(colours) == ["Image", "cat", "class9", "class10", "dog", "odd"]
    assert colours["cat"] == "#1f77b4"
    assert colours["Image"] == "#222222"
    assert len(set(colours.values())) == 6


@pytest.mark.parametrize("count", [1, 10, 30, 250])
def test_colours_are_distinct(count: int) -> None:
    colours = _columns.distinct_colours(count, ["#1f77b4"])
    assert len({*colours, "#1f77b4"}) == count + 1


def test_scores_are_groups_whose_last_is_the_top() -> None:
    column = _columns.column_of("outlier", np.arange(1000, dtype=np.float64))
    counts = np.bincount(column.group)
    assert len(column.groups) == len(counts) == 7
    assert counts[-1] == 10
    assert column.groups[-1].colour == "#440154"


def test_few_scores_are_a_group_each_and_none_is_said() -> None:
    column = _columns.column_of("noise", np.array([0.2, np.nan, 0, 0.2]))
    assert [group.name for group in column.groups] == ["0", "0.2", "none"]
    assert column.group.tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("values", [np.full(3, np.nan), np.full(3, 7.0)])
def test_scores_without_any_difference(values: Any) -> None:
    assert len(_columns.column_of("outlier", values).groups) == 1


def test_classes_are_in_the_order_of_their_numbers() -> None:
    labels = ["a-10", "a-9", "7" * 5000, "10", "-1", "9"]
    assert _columns.class_column(labels, {}).names == ["-1", "9", "10", "7" * 5000, "a-9", "a-10"]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    for name in [name for name in sys.modules if name.startswith("bokeh.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"pip install 'pixvec\[explore\]'"):
        _columns.class_column(["cat"], {})


def test_numbers_and_texts_are_categories() -> None:
    assert [group.name for group in _columns.column_of("cluster", np.array([10, -1, 9])).groups] == [
        "-1",
        "9",
        "10",
    ]
    assert [group.name for group in _columns.column_of("split", np.array(["b", "a"])).groups] == ["a", "b"]
    cluster = _columns.column_of("cluster", np.array(["3", None], object))
    assert cluster.groups[0] == _columns.Group("none", "#9a9a9a")
    assert cluster.names == ["none", "3"]
    with pytest.raises(InputError, match="complex128: pass texts"):
        _columns.column_of("odd", np.array([1j]))


def test_what_the_dataset_says_cannot_leave_its_string(tmp_path: Path) -> None:
    nasty = photos(tmp_path, [row(tmp_path / "a.png", name='"];alert(1)//\u2028</script>', label=LABEL)])
    script = data_script(nasty, points(1), {})
    assert b"\xe2" not in script
    assert told(script)["ids"] == [nasty.rows[0].id]
    assert told(script)["columns"][0]["names"] == [LABEL]


def test_data_does_not_say_where_images_lie(tmp_path: Path) -> None:
    found = photos(tmp_path / "set", [row(tmp_path / "secret" / "a.png")])
    assert b"secret" not in data_script(found, points(1), {})


@pytest.mark.parametrize(
    ("projections", "columns", "message"),
    [
        ({"UMAP": np.zeros((3, 2))}, {}, r"projections\['UMAP'\] is \(3, 2\): pass \(2, 2\)"),
        ({"UMAP": np.full((2, 2), np.nan)}, {}, "NaN"),
        (points(2), {"cluster": np.zeros(3, int)}, r"columns\['cluster'\] is \(3,\): pass \(2,\)"),
        (points(2), {"class": np.zeros(2)}, "another name"),
        (points(2), {"x": np.zeros(2)}, "another name"),
        (points(2), {"neighbours": np.zeros((2, 1))}, "indices of rows"),
        (points(2), {"neighbours": np.array([[1], [2]])}, r"outside 0\.\.1"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    tmp_path: Path, projections: Any, columns: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        data_script(photos(tmp_path, [row(tmp_path), row(tmp_path, "b.png")]), projections, columns)


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to show"):
        data_script(photos(tmp_path, []), points(0), {})


def test_images_are_upright(tmp_path: Path) -> None:
    images = images_of(row(turned_photo(tmp_path / "a.jpg")))
    assert images.size(0) == (20, 40)
    for jpeg in (images.whole(0, 500), images.thumb(0, 500)):
        image = opened(jpeg)
        assert image.size == (20, 40)
        assert is_near(image, (10, 5), RED)
        assert is_near(image, (10, 35), BLUE)


def test_a_thumbnail_is_of_the_object_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    file = turned_photo(tmp_path / "a.jpg")
    images = images_of(
        row(file, box=(0, 24, 18, 40)), row(file, box=(5, 30, 90, 90)), row(file, box=(50, 50, 60, 60))
    )
    assert opened(images.thumb(0, 500)).size == (18, 16)
    assert is_near(opened(images.thumb(0, 500)), (8, 8), BLUE)
    assert opened(images.thumb(1, 500)).size == (15, 10)
    assert opened(images.thumb(2, 500)).size == (20, 40), "a box outside the image: all of it"


def test_a_thumbnail_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "a.png")
    assert opened(images_of(row(tmp_path / "a.png")).thumb(0, 64)).size == (64, 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_all_modes_become_jpegs(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8)).save(file)
    assert opened(images_of(row(file)).thumb(0, 64)).mode == "RGB"


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"secret"])
def test_what_is_no_image_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    for ask in (
        images_of(row(tmp_path / "a.png")).size,
        lambda i: images_of(row(tmp_path / "a.png")).thumb(i, 64),
    ):
        with pytest.raises(InputError, match=r"a\.png"):
            ask(0)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_broken_avif_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(whole, "AVIF")
    (tmp_path / "a.avif").write_bytes(whole.getvalue().replace(b"av01", b"av0x"))
    with pytest.raises(InputError, match=r"a\.avif"):
        images_of(row(tmp_path / "a.avif")).thumb(0, 64)


class _Photo(BaseHTTPRequestHandler):
    """Answers every path with a JPEG, and counts."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        file = io.BytesIO()
        Image.new("RGB", (40, 20), RED).save(file, "JPEG")
        self.send_response(200 if self.path != "/gone" else 404)
        self.send_header("Content-Length", str(file.tell()))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a site with a photograph at every path but /gone."""
    _Photo.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Photo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_what_lies_at_a_url_is_fetched_once_and_the_page_does_not_name_it(tmp_path: Path, site: str) -> None:
    rows = [
        dataset.Row(id=name, uri=f"{site}/{name}", stamp="1", made="m", box=box)
        for name, box in (("a", (0, 0, 5, 5)), ("a", None), ("gone", None))
    ]
    found = photos(tmp_path, rows)
    with Images(found.rows, found.about) as images:
        assert images.size(0) == (40, 20)
        assert is_near(opened(images.thumb(0, 64)), (2, 2), RED)
        assert opened(images.whole(1, 64)).size == (40, 20)
        with pytest.raises(InputError, match="404"):
            images.size(2)
    assert _Photo.asked == ["/a", "/gone"]
    built = explore.build(found, points(3), {}, tmp_path / "page")
    assert list(built.missing) == ["gone"]
    assert opened((tmp_path / "page" / "images" / "0.jpg").read_bytes()).size == (40, 20)
    assert site.encode() not in (tmp_path / "page" / "data.js").read_bytes()


def test_urls_are_left_alone_on_request(tmp_path: Path, site: str) -> None:
    found = photos(tmp_path, [dataset.Row(id="a", uri=f"{site}/a", stamp="1", made="m")])
    built = explore.build(found, points(1), {}, tmp_path / "page", fetch=False)
    assert "fetch is False" in built.missing["a"]
    with explore.serve(found, points(1), {}, fetch=False) as page:
        assert ask(page, "/thumb/0")[0] == 404
    assert _Photo.asked == []


def test_the_cache_is_bounded_and_forgets_what_was_used_least_lately() -> None:
    cache, made = Cache(100), []

    def ask(key: int, size: int = 40) -> None:
        cache.get(key, lambda: made.append(key) or bytes(size))  # type: ignore[func-returns-value]

    for key in (1, 2, 1, 3, 1, 2):
        ask(key)
        assert cache.bytes <= 100
    assert made == [1, 2, 3, 2]
    ask(4, size=200)
    assert cache.bytes == 0


def test_a_page_on_disk_holds_sizes_boxes_and_outlines_in_pixels_of_the_image(tmp_path: Path) -> None:
    file = turned_photo(tmp_path / "a.jpg")
    outline = ((1.5, 24.0), (18.0, 24.0), (9.0, 40.0))
    rows = [row(file, object="o", box=(1, 24, 18, 40), outline=outline), row(tmp_path / "gone.png", "b.png")]
    built = explore.build(photos(tmp_path / "set", rows), points(2), {}, tmp_path / "page", image_px=10)
    assert built.page == tmp_path / "page" / "index.html"
    assert list(built.missing) == ["b.png"]
    assert "no file of this machine" in built.missing["b.png"]
    data = told((tmp_path / "page" / "data.js").read_bytes())
    assert data["sizes"] == [[20, 40], None]
    assert np.frombuffer(base64.b64decode(data["boxes"]), "<i4").tolist() == [1, 24, 18, 40, 0, 0, 0, 0]
    assert np.frombuffer(base64.b64decode(data["outlines"]), "<f4").reshape(-1, 2).tolist() == [
        list(corner) for corner in outline
    ]
    assert opened((tmp_path / "page" / "images" / "0.jpg").read_bytes()).size == (5, 10)
    assert opened((tmp_path / "page" / "thumbs" / "0.jpg").read_bytes()).size == (17, 16)
    assert "http" not in (tmp_path / "page" / "index.html").read_text().replace("http-equiv", "")
    done: list[tuple[int, int]] = []
    explore.build(
        photos(tmp_path / "set", rows),
        points(2),
        {},
        tmp_path / "page",
        progress=lambda *told: done.append(told),
    )
    assert done == [(1, 2), (2, 2)]


def test_a_page_is_written_anew_over_an_unfinished_or_older_one(tmp_path: Path) -> None:
    rows = [row(turned_photo(tmp_path / "a.jpg")), row(turned_photo(tmp_path / "b.jpg"), "b.png")]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            explore.build(photos(tmp_path, rows), points(2), {}, tmp_path / "page", progress=interrupt)
        assert not (tmp_path / "page" / "data.js").exists(), "what is not finished must not look so"
        explore.build(photos(tmp_path, rows), points(2), {}, tmp_path / "page")
    assert told((tmp_path / "page" / "data.js").read_bytes())["sizes"] == [[20, 40], [20, 40]]
    explore.build(photos(tmp_path, rows[:1]), points(1), {}, tmp_path / "page")
    assert [file.name for file in (tmp_path / "page" / "images").iterdir()] == ["0.jpg"]


def test_a_page_is_not_written_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    (tmp_path / "page.js").touch()
    found = photos(tmp_path, [row(tmp_path / "a.png")])
    with pytest.raises(InputError, match="something else than a page"):
        explore.build(found, points(1), {}, tmp_path)
    with pytest.raises(InputError, match="thumb_px = 0"):
        explore.build(found, points(1), {}, tmp_path / "page", thumb_px=0)
    with pytest.raises(InputError, match="a file has that name"):
        explore.build(found, points(1), {}, tmp_path / "mine.txt")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.1", "127.0.0.2:80"]
)
def test_hosts_that_are_ours(host: str) -> None:
    assert is_ours(host, "127.0.0.2")


@pytest.mark.parametrize(
    "host", [None, "", "example.com", "127.0.0.1.example.com", "localhost@example.com", "[::1", "127.0.0.3"]
)
def test_hosts_that_are_not_ours(host: str | None) -> None:
    assert not is_ours(host, "127.0.0.2")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[explore.Explorer]:
    found = photos(
        tmp_path / "set", [row(turned_photo(tmp_path / "a.jpg")), row(tmp_path / "gone.jpg", "b.jpg")]
    )
    (tmp_path / "set").mkdir()
    with explore.serve(found, points(2), {}) as explorer:
        yield explorer


def ask(
    page: explore.Explorer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    address = page.url.removeprefix("http://").removesuffix("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_page_is_served_with_a_policy(page: explore.Explorer) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/data.js", "text/javascript")):
        status, headers, body = ask(page, path)
        assert status == 200
        assert body
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'none'; script-src 'self';" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_images_are_served_by_index_and_size(page: explore.Explorer) -> None:
    status, headers, body = ask(page, "/thumb/0?size=32")
    assert (status, headers["Content-Type"], opened(body).size) == (200, "image/jpeg", (16, 32))
    assert opened(ask(page, "/thumb/0?size=99999")[2]).size == (20, 40)
    assert opened(ask(page, "/image/0")[2]).size == (20, 40)
    assert json.loads(ask(page, "/size/0")[2]) == [20, 40]


@pytest.mark.parametrize(
    "path",
    [
        "/thumb/1",
        "/thumb/2",
        "/thumb/-1",
        "/thumb/../a.jpg",
        "/image/0/../../a.jpg",
        "/../a.jpg",
        "/%2e%2e/a.jpg",
        "//etc/passwd",
        "/etc/passwd",
        "/file:///etc/passwd",
        "/thumb/%30",
        "/_server.py",
    ],
)
def test_nothing_else_is_served(page: explore.Explorer, path: str) -> None:
    status, _, body = ask(page, path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}


def test_other_sites_are_refused(page: explore.Explorer) -> None:
    assert ask(page, "/", Host="example.com")[0] == 403
    assert ask(page, "/search", "POST", Origin="http://example.com")[0] == 403
    assert ask(page, "/search/text", "POST", Origin="null")[0] == 403
    assert ask(page, "/", Origin=page.url.removesuffix("/"))[0] == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("none", "navigate", 200),
        ("same-origin", "no-cors", 200),
        ("cross-site", "navigate", 200),
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
    ],
)
def test_pages_of_other_sites_embed_nothing(
    page: explore.Explorer, site: str, mode: str, status: int
) -> None:
    asked = ask(page, "/data.js", **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})
    assert asked[0] == status


def test_search_needs_a_client_and_a_body_of_a_known_size(page: explore.Explorer) -> None:
    for path, most in (("/search/image", 64 << 20), ("/search/text", MAX_TEXT_BYTES)):
        assert ask(page, path, "POST", **{"Content-Length": "0"})[0] == 404
        assert ask(page, path, "POST", **{"Content-Length": str(most + 1)})[0] == 413
        assert ask(page, path, "POST", **{"Content-Length": "x"})[0] == 413


def test_neighbours_of_a_row_are_found_when_they_are_asked_for(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [5, 1], [0, 1], [-1, 0], [0, 0]], np.float32)
    rows = tuple(row(tmp_path / name, name) for name in "abcde")
    with explore.serve(dataset.Dataset(tmp_path, rows, vectors, (), {}), points(5), {}) as page:
        status, _, body = ask(page, "/near/0")
        assert (status, json.loads(body)["rows"]) == (200, [1, 2, 4, 3])
        assert ask(page, "/near/5")[0] == 404


def test_a_page_on_disk_holds_the_neighbours_that_nobody_has_computed_yet(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [5, 1], [0, 1]], np.float32)
    file = turned_photo(tmp_path / "a.jpg")
    found = dataset.Dataset(tmp_path, tuple(row(file, name) for name in "abc"), vectors, (), {})
    for given, expected in (({}, [1, 2, 0, 2, 1, 0]), ({"neighbours": np.array([[2], [0], [0]])}, [2, 0, 0])):
        explore.build(found, points(3), given, tmp_path / "page")
        near = told((tmp_path / "page" / "data.js").read_bytes())["neighbours"]
        assert np.frombuffer(base64.b64decode(near["rows"]), "<i4").tolist() == expected


def test_a_single_row_and_no_map_are_shown_all_the_same(tmp_path: Path) -> None:
    found = photos(tmp_path, [row(turned_photo(tmp_path / "a.jpg"))])
    explore.build(found, {}, {}, tmp_path / "page")
    data = told((tmp_path / "page" / "data.js").read_bytes())
    assert data["neighbours"] is None
    assert [one["name"] for one in data["projections"]] == ["in their order"]
    lines = told(data_script(photos(tmp_path, [row(tmp_path, str(i)) for i in range(5)]), {}, {}))
    places = np.frombuffer(base64.b64decode(lines["projections"][0]["points"]), "<f4").reshape(-1, 2)
    assert places.tolist() == [[0, 0], [1, 0], [2, 0], [0, -1], [1, -1]]


def test_thumbnails_are_kept_within_a_bound(tmp_path: Path) -> None:
    found = photos(tmp_path, [row(turned_photo(tmp_path / "a.jpg"))])
    site = Site(
        {}, 1, Images(found.rows, found.about), Cache(CACHE_BYTES), Neighbourhoods(found), search=None
    )
    for size in range(16, 600):
        site.get(f"/thumb/0?size={size}")
    assert 0 < site.cache.bytes < CACHE_BYTES


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "example.com", ""])
def test_only_the_loopback_is_served(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="loopback"):
        explore.serve(photos(tmp_path, [row(tmp_path)]), points(1), {}, host=host)


def test_a_port_that_is_taken_is_said(tmp_path: Path, page: explore.Explorer) -> None:
    taken = int(page.url.rpartition(":")[2].removesuffix("/"))
    with pytest.raises(InputError, match=f"port = {taken}"):
        explore.serve(photos(tmp_path, [row(tmp_path)]), points(1), {}, port=taken)
