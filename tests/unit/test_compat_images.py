"""easydl's image reader: every place that a text may lead to, and what is wrong there."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.servers import ROOT
from torchvision.transforms import v2

from pixvec import InputError
from pixvec.compat import easydl, handscan
from pixvec.compat.easydl import (
    Base64ImageError,
    FileImageError,
    ImageArgumentError,
    ImageLoadError,
    NetworkImageError,
    S3ImageError,
    smart_read_and_crop_image_by_box,
    smart_read_image,
    smart_read_image_v2,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def png(pixels: np.ndarray[Any, Any] = PIXELS) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def web() -> Iterator[tuple[str, list[int]]]:
    """A server that answers each request with the next of the statuses, then with 200 and a picture."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if statuses else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(png() if status == 200 else b"")

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/one.png", statuses
        server.shutdown()


def test_every_place_leads_to_the_same_picture(tmp_path: Path, web: tuple[str, list[int]]) -> None:
    (tmp_path / "é ü.png").write_bytes(png())
    encoded = base64.b64encode(png()).decode()
    places = (
        tmp_path / "é ü.png",
        str(tmp_path / "é ü.png"),
        (tmp_path / "é ü.png").as_uri(),
        f"base64://{encoded}",
        f"data:image/png;base64,{encoded}",
        web[0],
        Image.fromarray(PIXELS),
    )
    for place in places:
        found = smart_read_image(place)
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), PIXELS), place


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_a_picture_of_any_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "x.tif")
    assert smart_read_image(str(tmp_path / "x.tif")).mode == "RGB"
    assert smart_read_image(Image.fromarray(PIXELS).convert(mode)).mode == "RGB"


def test_it_is_turned_by_its_tag_where_that_is_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif)
    assert smart_read_image(str(tmp_path / "x.png")).size == (9, 6)
    for turned in (
        smart_read_image(str(tmp_path / "x.png"), exif_transpose=True),
        smart_read_image_v2(str(tmp_path / "x.png")),
    ):
        assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))


def test_a_url_is_tried_as_often_as_is_said(web: tuple[str, list[int]]) -> None:
    url, statuses = web
    statuses += [500]
    with pytest.raises(NetworkImageError, match="answered 500"):
        smart_read_image(url)
    statuses += [500, 404]
    assert smart_read_image(url, auto_retry=3).size == (9, 6)
    statuses += [500, 404, 500]
    with pytest.raises(NetworkImageError, match="answered 404"):
        smart_read_image(url, auto_retry=2)
    assert statuses == [500]


@pytest.mark.parametrize(
    ("place", "kind", "said"),
    [
        ("missing.png", FileImageError, r"^missing\.png: No such file or directory$"),
        (".", FileImageError, r"^\.: Is a directory$"),
        ("", FileImageError, "Is a directory|No such file"),
        ("words.png", FileImageError, r"^words\.png: not a picture of a format that Pillow reads$"),
        ("half.png", FileImageError, r"^half\.png: .*truncated"),
        ("file:///missing/x.png", FileImageError, "/missing/x.png: No such file"),
        ("ftp://host/x.png", FileImageError, "a URL begins with"),
        ("http://127.0.0.1:1/x.png", NetworkImageError, r"^http://127\.0\.0\.1:1/x\.png: "),
        ("base64://abc", Base64ImageError, r"^base64://abc: Incorrect padding"),
        ("base64://" + "AAAA" * 99, Base64ImageError, r"^base64://A{71}…: not a picture"),
        ("s3://bucket/key.png", S3ImageError, "presigned https:// URL"),
    ],
)
def test_what_cannot_be_read_says_so_in_its_place_s_error(
    place: str, kind: type[ImageLoadError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.png").write_text("no picture at all")
    Path("half.png").write_bytes(png(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8))[:9000])
    with pytest.raises(kind, match=said) as caught:
        smart_read_image(place)
    assert isinstance(caught.value, ImageLoadError)


@pytest.mark.parametrize("place", [None, 3, b"bytes", PIXELS, ["cat.jpg"]])
def test_another_type_is_a_value_error(place: Any) -> None:
    with pytest.raises(ValueError, match=f"image_str is a {type(place).__name__}: pass a path, a URL"):
        smart_read_image(place)


@pytest.mark.parametrize("tries", [-1, "2", None, 1.5])
def test_another_number_of_tries_is_a_value_error(tries: Any) -> None:
    with pytest.raises(ImageArgumentError, match="auto_retry = "):
        smart_read_image("cat.jpg", tries)


@pytest.mark.parametrize(
    ("box", "size"),
    [((2, 1, 6, 4), (4, 3)), ((5, 0, 5, 4), (0, 4)), ((6, 0, 2, 4), (0, 4)), ((0, 4, 3, 1), (3, 0))],
)
def test_a_box_is_cut_out_and_one_without_an_inside_is_empty(
    box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    found = smart_read_and_crop_image_by_box(Image.fromarray(PIXELS), box)
    assert (found.mode, found.size) == ("RGB", size)
    if all(size):
        assert np.array_equal(np.asarray(found), PIXELS[box[1] : box[3], box[0] : box[2]])


def test_a_box_past_the_edge_is_black_there() -> None:
    found = np.asarray(smart_read_and_crop_image_by_box(Image.fromarray(PIXELS), (7, 4, 11, 8)))
    assert np.array_equal(found[:2, :2], PIXELS[4:, 7:])
    assert not found[2:].any()
    assert not found[:, 2:].any()


@pytest.mark.parametrize("box", [(1, 2, 3), None, (0, 0, "x", 4), (0, 0, float("nan"), 4), 7])
def test_what_is_no_box_is_a_value_error(box: Any) -> None:
    with pytest.raises(ImageArgumentError, match=r"^box = .*: give \(left, upper, right, lower\)"):
        smart_read_and_crop_image_by_box(Image.fromarray(PIXELS), box)


def test_easydls_transforms_say_what_to_call_instead() -> None:
    for transform in (
        easydl.COMMON_IMAGE_PREPROCESSING_FOR_TESTING,
        easydl.COMMON_IMAGE_PREPROCESSING_FOR_TRAINING,
    ):
        with pytest.raises(NotImplementedError, match=r"COMMON_IMAGE_.*model\.embed_image\(image\)"):
            transform(Image.fromarray(PIXELS))


# HandScanAI's preprocessing, by torchvision and by Pillow


@pytest.mark.parametrize("size", [(500, 300), (40, 90), (224, 224), (3, 500)])
def test_a_hand_is_prepared_as_torchvision_does(size: tuple[int, int]) -> None:
    with Image.open(ROOT / "docs" / "images" / "explorer.png") as picture:
        pixels = np.array(picture.convert("RGB").resize(size[::-1]))
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(size=(224, 224), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    wanted = transforms(pixels).unsqueeze(0).numpy()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for given in (pixels, tensor, Image.fromarray(pixels), pixels / np.float32(255)):
        found = handscan.preprocess_image(given)
        assert (found.shape, found.dtype.name) == ((1, 3, 224, 224), "float32")
        # A grey level, of 255, is what two libraries' rounding makes of it.
        assert np.abs(found - wanted).max() <= 1.01 / 255
        assert np.abs(found - wanted).mean() <= 0.1 / 255
    assert np.array_equal(handscan.preprocess_image(pixels, transforms), wanted)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((20, 30), np.uint8), r"np\.stack\(\[image\] \* 3, axis=2\) of a grey image"),
        (np.zeros((20, 30, 3), np.int64), "uint8, or floats within 0..1, not int64"),
        (np.full((20, 30, 3), 200.0), "lies within 200..200"),
        ([[1, 2], [3]], "a list that numpy cannot read"),
        (torch.zeros((3, 4, 4), dtype=torch.bfloat16), "a Tensor that numpy cannot read"),
    ],
)
def test_what_is_no_picture_of_a_hand_is_refused(image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        handscan.preprocess_image(image)
