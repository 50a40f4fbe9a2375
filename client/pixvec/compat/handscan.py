"""HandScanAI's embeddings of hand regions: a dict of images by region in, a dict of vectors by region out.

>>> regions = {"Hand": "hand.png", "Thumb": "thumb.png"}
>>> calculate_embeddings_from_path_dict(regions)["Thumb"].shape         # doctest: +SKIP
(1024,)

All images of a dict are one batch of the server's. Vectors have unit length.
"""

import enum
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pixvec._client import Client
from pixvec._errors import BadOptionError, InputError, PixvecError
from pixvec._inputs import ImageLike, to_input
from pixvec._types import Array, Vectors

from . import Served, reworded, shared_client
from ._images import Picture, squashed

_Key = TypeVar("_Key", bound=Hashable)
_CHANNELS = (1, 3, 4)
_SIDE = 224


class CNNModel(enum.Enum):
    """A network; its value is the name that the server serves it under."""

    DENSENET_121 = "handscan-densenet121"
    DENSENET_169 = "handscan-densenet169"
    RESNET_50 = "handscan-resnet50"


class HandModel:
    """A network that a server runs; `load_model` makes one. Raises as `load_model` does.

    size: length of its vectors. device: where the server runs it, such as "cpu" or "cuda:0".
    """

    def __init__(self, model: CNNModel, client: Client | None = None) -> None:
        self.model = model
        self._served = Served(model.value, client)
        self.size = self._served.size
        self.device = self._served.info.device

    def __call__(self, batch: npt.ArrayLike) -> Vectors:
        """Return the vectors (N, D) float32, not scaled, of images (N, 3, h, w), floats within 0..1."""
        images = np.asarray(batch)
        if images.ndim != 4 or images.shape[1] not in _CHANNELS:
            raise InputError(f"a batch is (N, 3, h, w), not {images.shape}: use preprocess_image(image)")
        pixels = list(images.transpose(0, 2, 3, 1))
        return self._served.client.embed_batch(pixels, **self._served.wanted(normalize=False))

    def eval(self) -> Self:
        """Return the model: a server's never trains."""
        return self

    def to(self, *_device: object) -> Self:
        """Return the model: the server chose its device, which its own settings name."""
        return self

    def embed(self, images: Sequence[ImageLike]) -> Vectors:
        """Return the vectors (N, D) float32, of unit length, of some images; raises the first one's error."""
        return self._served.client.embed_batch(images, **self._served.wanted(normalize=True))


def load_model(model: CNNModel = CNNModel.DENSENET_121, *, client: Client | None = None) -> HandModel:
    """Return a network: 1024, 1664 or (RESNET_50: its logits) 1000 numbers.

    client: whose server is asked; None: see `pixvec.compat`. Raises BadOptionError for what is no CNNModel;
    ModelNotFoundError and ConnectionFailedError, which say how to serve it.
    """
    if not isinstance(model, CNNModel):
        raise BadOptionError(f"model = {model!r}: give one of {', '.join(map(str, CNNModel))}")
    return HandModel(model, client)


def choose_device(model: HandModel | None = None) -> str:
    """Return where the server runs a network, such as "cpu" or "cuda:0"; None: DENSENET_121.

    The server has chosen, by its settings. Raises as `load_model` does.
    """
    return _network(model).device


def preprocess_image(input_image: Any, transforms: Callable[[Any], Any] | None = None) -> Array:  # noqa: ANN401 - no torch here
    """Return an image as the networks see it: (1, 3, 224, 224) float32, 0 to 1, aspect not kept.

    input_image: as `calculate_embedding` takes it, which does this in the server. transforms: what makes
    (3, h, w) of the image in its place. Raises InputError for another image, and where Pillow is missing.
    """
    if transforms is not None:
        return np.asarray(transforms(input_image), np.float32)[np.newaxis]
    given = _pixels(input_image)
    if isinstance(given, np.ndarray):
        pixels = to_input(given).pixels
        given = np.frombuffer(pixels.data, np.uint8).reshape(pixels.shape)
    scaled: Array = squashed(given, _SIDE).transpose(2, 0, 1)[np.newaxis] / np.float32(255)
    return scaled


def calculate_embeddings_from_tensor_dict(
    regions_dict: Mapping[_Key, Any], model: HandModel | None = None
) -> dict[_Key, Array]:
    """Return the vector (D,) of each image, under its key; images are as `calculate_embedding` takes them.

    model: None: DENSENET_121. An error names the key of the first image that does not work.
    """
    return _embed(_each(regions_dict, _pixels), model)


def calculate_embeddings_from_path_dict(
    regions_dict: Mapping[_Key, str | os.PathLike[str]], model: HandModel | None = None
) -> dict[_Key, Array]:
    """Return the vector (D,) of the image at each path or URL, under its key; else as from a tensor dict."""
    return _embed(_each(regions_dict, _path), model)


def calculate_embedding(image: Any, model: HandModel | None = None) -> Array:  # noqa: ANN401 - no torch here
    """Return the vector (D,) float32, of unit length, of one image.

    image: RGB, uint8 or floats within 0..1: an array (h, w, 3) or a torch.Tensor (3, h, w). The type alone
    tells which, so that a picture of 3 rows is no riddle. Or a PIL image. Raises InputError for another one.
    """
    pixels = _pixels(image)
    try:
        vector: Array = _network(model).embed([pixels])[0]
    except PixvecError as error:
        if error.index is None:
            raise
        raise reworded(error, error.message) from error
    return vector


def normalize_embedding(embedding: npt.ArrayLike) -> Array:
    """Return one vector, (D,) or with axes of length 1 around it, at unit length; zeros stay zeros.

    Raises InputError for more than one vector.
    """
    vector = np.atleast_1d(np.squeeze(np.asarray(embedding)))
    if vector.ndim != 1:
        raise InputError(f"embedding has shape {np.shape(embedding)}: pass one vector, (D,) or (1, D)")
    length = np.linalg.norm(vector)
    unit: Array = vector / (length or 1.0)
    return unit


@cache
def _default(client: Client) -> HandModel:
    return load_model(client=client)


def _network(model: HandModel | None) -> HandModel:
    if model is None:
        return _default(shared_client())
    if not isinstance(model, HandModel):
        raise BadOptionError(f"model = {model!r}: pass what load_model() returns")
    return model


def _each(regions: Mapping[_Key, Any], convert: Callable[[Any], ImageLike]) -> dict[_Key, ImageLike]:
    if not isinstance(regions, Mapping):
        raise InputError(f"regions_dict is a {type(regions).__name__}: pass a dict of images by key")
    converted = {}
    for key, image in regions.items():
        try:
            converted[key] = convert(image)
        except InputError as error:
            raise _of(key, error) from error
    return converted


def _embed(images: Mapping[_Key, ImageLike], model: HandModel | None) -> dict[_Key, Array]:
    if not images:
        return {}
    keys = list(images)
    try:
        vectors = _network(model).embed(list(images.values()))
    except PixvecError as error:
        if error.index is None:
            raise
        raise _of(keys[error.index], error) from error
    return dict(zip(keys, vectors, strict=True))


def _of(key: Hashable, error: PixvecError) -> PixvecError:
    return reworded(error, f"regions_dict[{key!r}]: {error.message}")


def _path(image: Any) -> ImageLike:  # noqa: ANN401 - whatever a dict holds
    if not isinstance(image, str | os.PathLike):
        raise InputError(
            f"a {type(image).__name__} is no path: pass it to calculate_embeddings_from_tensor_dict"
        )
    return image


def _pixels(image: Any) -> Array | Picture:  # noqa: ANN401 - an array or a tensor, and torch is not imported to ask
    if isinstance(image, str | os.PathLike):
        raise InputError(f"{image!r} is a path: pass it to calculate_embeddings_from_path_dict")
    made_by = {base.__module__.partition(".")[0] for base in type(image).__mro__}
    if "PIL" in made_by:
        return image
    if "torch" in made_by:
        if image.ndim != 3 or image.shape[0] not in _CHANNELS:
            raise InputError(f"a tensor is (3, h, w), not {tuple(image.shape)}: use .permute(2, 0, 1)")
        return _array(image.detach().cpu()).transpose(1, 2, 0)
    array = _array(image)
    if array.ndim == 2:
        raise InputError(
            f"an array is (h, w, 3), not {array.shape}: use np.stack([image] * 3, axis=2) of a grey image"
        )
    if array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise InputError(
            f"an array is (h, w, 3), not {array.shape}: use .transpose(1, 2, 0) where the channels are "
            "first, or pass a torch.Tensor"
        )
    return array


def _array(image: Any) -> Array:  # noqa: ANN401 - an array, a tensor, or lists of numbers
    try:
        return np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"a {type(image).__name__} that numpy cannot read: {error}") from error
