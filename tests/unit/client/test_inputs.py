"""Everything that a program calls an image becomes the right Input."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.decoding import rgb_of, tiff

from pixvec import InputError, Region, TooLargeError, to_input
from pixvec._inputs import needs_reading, operands_of
from pixvec.v1 import embedding_pb2 as pb


def pixels(message: pb.Input) -> Any:
    assert message.pixels.encoding == pb.ENCODING_UINT8
    return np.frombuffer(message.pixels.data, np.uint8).reshape(tuple(message.pixels.shape))


@pytest.fixture
def rgb() -> Any:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_paths_and_file_urls(tmp_path: Path) -> None:
    file = tmp_path / "ä b%20.jpg"
    file.write_bytes(b"cat")
    for name in (file, str(file), file.as_uri(), file.as_uri().replace("file://", "file://localhost")):
        assert to_input(name).image == b"cat"


@pytest.mark.parametrize(
    "data", [b"cat", bytearray(b"cat"), memoryview(b"cat"), io.BytesIO(b"cat"), memoryview(b"c_a_t_")[::2]]
)
def test_bytes_and_file_objects(data: Any) -> None:
    assert to_input(data).image == b"cat"


def test_data_urls() -> None:
    encoded = base64.b64encode(b"\x00cat").decode()
    assert to_input(f"data:image/png;base64,{encoded}").image == b"\x00cat"
    assert to_input("data:,a%20cat").image == b"a cat"
    lines = f"{encoded[:3]}\n {encoded[3:]}".rstrip("=")
    assert to_input(f" data:;base64,{lines}\n").image == b"\x00cat"
    for broken in ("data:image/png;base64,§", "data:image/png"):
        with pytest.raises(InputError):
            to_input(broken)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("/no/such.jpg", "/no/such.jpg: No such file"),
        ("/", "/: Is a directory"),
        ("nul\0.jpg", "null"),
        ("file://elsewhere/cat.jpg", "no other host"),
        ("s3://bucket/key.jpg", "s3:// is not read here; open it with its own library"),
        ("gs://bucket/key.jpg", "gs:// is not read here"),
        ("iVBORw0KGgoAAAANSUhEUgAAAAUA" * 1000, r"28000 characters looks like base64: pass base64.b64decode"),
        ("/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgH", "looks like base64"),
        ("UklGRiQAAABXRUJQVlA4\nIBgAAAAwAQCdASoBAAEAAQAcJaQAA3AA\n", "looks like base64"),
        (str(b"\x89PNG\r\n"), "the repr of bytes: pass the bytes themselves"),
        ("a sentence " * 500, "is neither: .*pixvec.Text"),
        ("x" * 300, r"xxx… \(300 characters\): File name too long"),
        (io.StringIO("text"), "binary mode"),
        (3, "cannot be a int"),
        (None, "cannot be a NoneType"),
        ([[1, 2]], "cannot be a list"),
    ],
)
def test_what_cannot_be_read_says_why(image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        to_input(image)


def test_no_message_is_as_long_as_its_input() -> None:
    for image in (
        "iVBORw0KGgo" * 10_000,
        "data:image/png;base64," + "§" * 10_000,
        "http://host:0/" + "x" * 10_000,
    ):
        with pytest.raises(InputError) as caught:
            to_input(image)
        assert len(str(caught.value)) < 500


def test_a_path_of_bytes(tmp_path: Path) -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "cat")

    (tmp_path / "cat").write_bytes(b"cat")
    assert to_input(BytesPath()).image == b"cat"  # type: ignore[arg-type]


def test_a_masked_array_without_a_mask_is_an_array(rgb: Any) -> None:
    np.testing.assert_array_equal(pixels(to_input(np.ma.masked_array(rgb))), rgb)


def test_a_file_over_the_limit_is_not_read_in_full(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 33)
    with pytest.raises(TooLargeError, match=r"huge holds more than 1000 bytes"):
        to_input(file, max_bytes=1000)


def test_arrays_of_every_layout(rgb: Any) -> None:
    np.testing.assert_array_equal(pixels(to_input(rgb)), rgb)
    np.testing.assert_array_equal(pixels(to_input(rgb[:, :, 0])), rgb[:, :, :1])
    np.testing.assert_array_equal(pixels(to_input(rgb[:, :, :1])), rgb[:, :, :1])
    rgba = np.dstack([rgb, rgb[:, :, 0]])
    np.testing.assert_array_equal(pixels(to_input(rgba)), rgba)
    np.testing.assert_array_equal(pixels(to_input(rgb.transpose(2, 0, 1))), rgb)
    np.testing.assert_array_equal(pixels(to_input(rgb[::-1, ::2])), rgb[::-1, ::2])


def test_an_ambiguous_layout_is_read_as_channels_last() -> None:
    array = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)
    np.testing.assert_array_equal(pixels(to_input(array)), array)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_within_0_and_1_are_scaled(rgb: Any, dtype: Any) -> None:
    np.testing.assert_array_equal(pixels(to_input((rgb / 255).astype(dtype))), rgb)


def test_things_with_an_array(rgb: Any) -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return rgb

    class OnDevice:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    np.testing.assert_array_equal(pixels(to_input(Tensor())), rgb)
    with pytest.raises(InputError, match="cuda:0"):
        to_input(OnDevice())


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4, 3), np.float32) - 0.1, r"float32 of shape \(4, 4, 3\) lies within -0.1"),
        (np.full((4, 4), 255.0), "divide by 255"),
        (np.full((4, 4), np.nan), "lies within nan"),
        (np.zeros((4, 4), np.uint16), r"not uint16 of shape \(4, 4, 1\).*astype"),
        (np.zeros((4, 4), bool), "not bool"),
        (np.zeros((2, 4, 4, 3), np.uint8), "embed_batch"),
        (np.zeros(4, np.uint8), r"not \(4,\)"),
        (np.zeros((5, 5, 5), np.uint8), r"not \(5, 5, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"not \(0, 5, 3\)"),
    ],
)
def test_a_wrong_array_names_its_shape_and_the_mend(array: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        to_input(array)


def test_pil_rgb_and_grey_go_as_pixels(rgb: Any) -> None:
    np.testing.assert_array_equal(pixels(to_input(Image.fromarray(rgb))), rgb)
    grey = Image.fromarray(rgb[:, :, 0])
    np.testing.assert_array_equal(pixels(to_input(grey)), rgb[:, :, :1])


def test_pil_is_turned_by_its_exif_tag(rgb: Any) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(to_input(Image.open(file))), np.rot90(rgb, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_pil_of_other_modes_goes_as_a_lossless_png(rgb: Any, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(np.dstack([rgb, rgb[:, :, 0]])).convert(mode)
    sent = Image.open(io.BytesIO(to_input(image).image))
    assert (sent.format, sent.mode) == ("PNG", mode)
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))


def test_pil_with_a_transparent_colour_keeps_it(rgb: Any) -> None:
    image = Image.fromarray(rgb)
    image.info["transparency"] = tuple(int(x) for x in rgb[0, 0])
    assert Image.open(io.BytesIO(to_input(image).image)).info["transparency"] == image.info["transparency"]


_GRAY16 = (np.arange(48, dtype=np.uint16) * 80).reshape(6, 8)
_PLANAR = {256: 8, 257: 6, 258: (16,) * 3, 259: 1, 262: 2, 277: 3, 278: 6, 284: 2}
_WIDE = {256: 8, 257: 6, 258: 16, 259: 1, 262: 1, 277: 1, 278: 6}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({**_WIDE, 281: 4095}, "white is below"),
        ({**_WIDE, 341: 1023}, "white is below"),
        ({**_WIDE, 262: 0}, "0 is white"),
        (_PLANAR, "in planes"),
        ({**_PLANAR, 284: 1, 281: (4095,) * 3}, "white is below"),
    ],
)
def test_pil_of_a_tiff_that_pillow_reads_wrongly_is_refused(tags: dict[int, Any], words: str) -> None:
    data = tiff(tags, _GRAY16.tobytes() * (3 if tags[277] == 3 else 1))
    with Image.open(io.BytesIO(data)) as image, pytest.raises(InputError, match="path or bytes") as refused:
        to_input(image)
    assert words in str(refused.value)
    assert to_input(data).image == data


@pytest.mark.parametrize("tags", [_WIDE, {**_WIDE, 281: 65_535}, {**_PLANAR, 284: 1}])
def test_pil_of_a_tiff_of_16_bits_is_what_the_server_reads(tags: dict[int, Any]) -> None:
    body = (_GRAY16 * 17).tobytes() * (3 if tags[277] == 3 else 1)
    data = tiff(tags, body)
    with Image.open(io.BytesIO(data)) as image:
        message = to_input(image)
    seen = pixels(message) if message.WhichOneof("content") == "pixels" else rgb_of(message.image)
    np.testing.assert_array_equal(seen, rgb_of(data))


def test_pil_of_a_tiff_of_8_bits_is_taken_in_every_form(rgb: Any) -> None:
    gray = {256: 8, 257: 6, 258: 8, 259: 1, 262: 0, 277: 1, 278: 6, 281: 255}
    samples = np.arange(48, dtype=np.uint8)
    with Image.open(io.BytesIO(tiff(gray, samples.tobytes()))) as image:
        np.testing.assert_array_equal(pixels(to_input(image)).ravel(), 255 - samples)


def test_pil_cmyk_goes_as_rgb(rgb: Any) -> None:
    image = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(pixels(to_input(image)), np.asarray(image.convert("RGB")))


def test_a_broken_pil_image_is_an_input_error(rgb: Any) -> None:
    file = io.BytesIO()
    Image.fromarray(rgb.repeat(40, 0).repeat(40, 1)).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:400]))
    with pytest.raises(InputError, match="PIL image of mode RGB"):
        to_input(cut)


def test_regions_and_prompt_do_not_change_the_callers_message() -> None:
    own = pb.Input(image=b"cat", regions=[pb.Region(whole=True)], prompt="photo")
    assert to_input(own) is own
    changed = to_input(own, regions=[Region(1, 2, 3, 4).expand(2)])
    assert changed.regions[0] == pb.Region(left=-1, top=0, right=5, bottom=6)
    assert (changed.image, changed.prompt) == (b"cat", "photo")
    assert own.regions[0].whole
    assert to_input(own, prompt="query").regions == own.regions
    tensor = to_input(np.zeros((2, 2), np.uint8), regions=[(0, 0, 1, 1)])
    assert tensor.pixels.shape == [2, 2, 1]
    assert Region.whole_image().expand(5) == Region(whole=True)


def test_only_memory_needs_no_reading() -> None:
    assert not needs_reading(b"cat")
    assert not needs_reading(pb.Input(text="cat"))
    assert needs_reading("cat.jpg")
    assert needs_reading(np.zeros((2, 2), np.uint8))


def test_operands_are_told_apart() -> None:
    assert len(list(operands_of(np.zeros((3, 8), np.float32)))) == 3
    assert len(list(operands_of(np.zeros(8, np.float32)))) == 1
    assert len(list(operands_of(np.zeros((3, 8), np.uint8)))) == 1
    assert len(list(operands_of(np.zeros((2, 4, 4, 3), np.uint8)))) == 2
    assert len(list(operands_of("cat.jpg"))) == 1
    assert len(list(operands_of(name for name in ("a", "b")))) == 2
    assert len(list(operands_of(io.BytesIO(b"cat")))) == 1
    assert len(list(operands_of(Image.new("L", (2, 2))))) == 1


def test_a_large_pil_image_goes_as_a_png() -> None:
    small = to_input(Image.new("RGB", (100, 100)))
    large = to_input(Image.new("RGB", (4032, 3024)))
    assert small.WhichOneof("content") == "pixels"
    assert large.image.startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["RGBX", "RGBa", "PA", "La", "LAB"])
def test_modes_that_no_png_holds_are_converted(mode: str) -> None:
    message = to_input(Image.new(mode, (4, 4)))
    assert message.image or message.pixels.data
