"""Every preprocessing profile against its own system's way of making a network's input, written anew here.

What is compared is the normalised input itself: ours decoded, fitted and run through the module's first
steps, theirs made of the same photograph by other libraries' resizes and by the formulas of each system.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from support import photos
from torchvision.transforms import InterpolationMode, v2

from pixvec_server import catalog
from pixvec_server.module.image import ImageModule
from pixvec_server.module.towers import Tower
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.spec import Preprocess
from pixvec_server.types import WHOLE

Array: TypeAlias = Any
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PICTURES = ("chelsea.png", "rocket.jpg", "motorcycle_left.png", "coins.png", "retina.jpg", "horse.png")


class Bare(Tower):
    """A tower that answers with its input."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), ("features", "pooled"))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": pixels, "pooled": pixels.flatten(1)}


def ours(file: bytes, preprocess: Preprocess) -> Array:
    """The network's input: (3, height, width) float32."""
    spec = spec_of(preprocess)
    decoder = Decoder(ImageLimits(), DecodeOptions(), PixelBudget(400_000_000))
    with ExitStack() as held:
        pixels = fit(decoder.decode(file, held, None, spec.frames), WHOLE, spec)
    return ImageModule(Bare(), preprocess)(torch.tensor(pixels)[None])[2][0].numpy()


def torchvision(side: int, short: int, mode: InterpolationMode, mean: Any, std: Any) -> Callable[..., Array]:
    """Two steps on the PIL image, as timm and torchvision do."""
    steps = [
        v2.Resize(short, mode),
        v2.CenterCrop(side),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    transform = v2.Compose([*steps, v2.Normalize(mean, std)])
    return lambda picture: transform(picture).numpy()


def handscan(picture: Image.Image) -> Array:
    """ToImage, Resize((224, 224), antialias), ToDtype(float32, scale)."""
    steps = [v2.ToImage(), v2.Resize((224, 224), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps)(np.asarray(picture).copy()).numpy()


def cv2_like(picture: Image.Image) -> Array:
    """cv2.resize with INTER_CUBIC, straight to size; / 255, less mean, by std."""
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        tensor, (224, 224), mode="bicubic", align_corners=False, antialias=False
    )
    return normalised(resized[0].round().clamp(0, 255).numpy() / 255, *IMAGENET)


def tensorflow_like(offset: Any, scale: Any) -> Callable[[Image.Image], Array]:
    """tf.image.resize(bilinear, antialias) of floats, then Keras' preprocess_input."""

    def run(picture: Image.Image) -> Array:
        tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(
            tensor, (224, 224), mode="bilinear", align_corners=False, antialias=True
        )
        return (resized[0].numpy() - np.reshape(offset, (-1, 1, 1))) / np.reshape(scale, (-1, 1, 1))

    return run


def easydl(picture: Image.Image) -> Array:
    """ToTensor, Resize(256) of the tensor, CenterCrop(224), Normalize."""
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(256, antialias=True)]
    return v2.Compose([*steps, v2.CenterCrop(224), v2.Normalize(*IMAGENET)])(picture).numpy()


def keras_nearest(picture: Image.Image) -> Array:
    """load_img(target_size) of Keras 2.1: Pillow's nearest; (height, width, 3) of 0 to 255."""
    return np.asarray(picture.resize((224, 224), Image.Resampling.NEAREST), np.float32)


def keras_caffe(picture: Image.Image) -> Array:
    """preprocess_input(mode="caffe"): RGB to BGR, less the mean, no scale."""
    return (keras_nearest(picture)[:, :, ::-1] - [103.939, 116.779, 123.68]).transpose(2, 0, 1)


def keras_tf(picture: Image.Image) -> Array:
    """preprocess_input(mode="tf"): x / 127.5 - 1."""
    return keras_nearest(picture).transpose(2, 0, 1) / 127.5 - 1


def processor(made: Any) -> Callable[[Image.Image], Array]:
    """An image processor of transformers, with its defaults."""
    return lambda picture: np.asarray(made(picture, return_tensors="np")["pixel_values"][0])


def siglip(picture: Image.Image) -> Array:
    """open_clip's own evaluation transform for SigLIP."""
    transform = open_clip.image_transform(
        224, is_train=False, mean=HALF[0], std=HALF[1], resize_mode="squash", interpolation="bicubic"
    )
    return transform(picture).numpy()


def normalised(scaled: Array, mean: Any, std: Any) -> Array:
    return (scaled - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))


REFERENCES: dict[str, Callable[[Image.Image], Array]] = {
    "imagenet": torchvision(224, 256, InterpolationMode.BICUBIC, *IMAGENET),
    "inception": torchvision(224, 256, InterpolationMode.BICUBIC, *HALF),
    "clip": torchvision(224, 224, InterpolationMode.BICUBIC, *CLIP),
    "siglip": siglip,
    "hf-vit": processor(transformers.ViTImageProcessor()),
    "scale01": handscan,
    "cv2": cv2_like,
    "pupyl-tf": tensorflow_like([127.5] * 3, [127.5] * 3),
    "pupyl-torch": tensorflow_like(np.multiply(IMAGENET[0], 255), np.multiply(IMAGENET[1], 255)),
    "pupyl-128": tensorflow_like([128.0] * 3, [128.0] * 3),
    "easydl": easydl,
    "keras-caffe": keras_caffe,
    "keras-tf": keras_tf,
}
BUGS: dict[str, dict[str, Any]] = {
    "channels": {"channels": "swapped"},
    "mean": {"mean": (0.4, 0.4, 0.4)},
    "std": {"std": (0.35, 0.35, 0.35)},
    "mode": {"mode": "other"},
}


def of_profile(name: str) -> Preprocess:
    return Preprocess(**catalog.profile(name).model_dump(), height=224, width=224)


def closeness(left: Array, right: Array) -> tuple[float, float]:
    """The cosine of two inputs, and their difference against the spread of the second."""
    a, b = np.asarray(left, np.float64).ravel(), np.asarray(right, np.float64).ravel()
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return cosine, float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean()))


def test_every_profile_has_a_reference() -> None:
    assert set(REFERENCES) == set(catalog.profiles())


@pytest.mark.parametrize("name", REFERENCES)
def test_a_profile_is_its_systems(name: str) -> None:
    for picture in PICTURES:
        file = photos.encode(photos.image(picture), "PNG")
        cosine, error = closeness(ours(file, of_profile(name)), REFERENCES[name](photos.image(picture)))
        # A grey level is 0.4 % of the range: whoever resizes floats does not round to one.
        assert cosine >= 0.9999, (picture, cosine)
        assert error <= 0.01, (picture, error)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_planted_bug_would_be_found(name: str, bug: str) -> None:
    right = of_profile(name)
    change = dict(BUGS[bug])
    if bug == "channels":
        change["channels"] = "rgb" if right.channels == "bgr" else "bgr"
    if bug == "mode":
        change["mode"] = "squash" if right.mode == "short_side_crop" else "short_side_crop"
    wrong = right.model_copy(update=change)
    picture = photos.image("chelsea.png")
    file = photos.encode(picture, "PNG")
    assert closeness(ours(file, wrong), REFERENCES[name](picture))[1] > 0.01


@pytest.mark.parametrize("name", ["cv2", "keras-tf", "keras-caffe"])
def test_antialiasing_where_there_was_none_would_be_found(name: str) -> None:
    interpolation = {"cv2": "bicubic"}.get(name, "bilinear")
    wrong = of_profile(name).model_copy(update={"antialias": True, "interpolation": interpolation})
    picture = photos.image("motorcycle_left.png")
    file = photos.encode(picture, "PNG")
    assert closeness(ours(file, wrong), REFERENCES[name](picture))[1] > 0.01


def test_an_animation_is_the_mean_of_its_frames_for_pupyl_alone() -> None:
    frames = [photos.image(name).resize((300, 200)) for name in ("chelsea.png", "rocket.jpg", "coffee.png")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=50)
    with Image.open(io.BytesIO(file.getvalue())) as gif:
        read = []
        for i in range(3):
            gif.seek(i)
            read.append(np.asarray(gif.convert("RGB"), np.float64))
    mean = Image.fromarray(np.round(np.mean(read, 0)).astype(np.uint8))
    first = Image.fromarray(read[0].astype(np.uint8))
    for name, expected in (("pupyl-tf", mean), ("scale01", first)):
        got = ours(file.getvalue(), of_profile(name))
        assert closeness(got, REFERENCES[name](expected))[1] <= 0.02, name
