"""HandScanAI's embeddings of hand regions: a dict of images by region in, a dict of vectors by region out.

>>> regions = {"Hand": "hand.png", "Thumb": "thumb.png"}
>>> calculate_embeddings_from_path_dict(regions)["Thumb"].shape         # doctest: +SKIP
(1024,)

All images of a dict are one batch of the server's. Vectors have unit length.
"""

import enum
import os
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pixvec._client import Client
from pixvec._errors import InputError, PixvecError
from pixvec._inputs import ImageLike
from pixvec._types import Array, Vectors

from . import Served, reworded, shared_client

_Key = TypeVar("_Key", bound=Hashable)
_CHANNELS = (1, 3, 4)


class CNNModel(enum.Enum):
    """A network; its value is the name that the server serves it under."""

    DENSENET_121 = "handscan-densenet121"
    DENSENET_169 = "handscan-densenet169"
    RESNET_50 = "handscan-resnet50"


class HandModel:
    """A network that a server runs; `load_model` makes one. Raises as `load_model` does."""

    def __init__(self, model: CNNModel, client: Client | None = None) -> None:
        self.model = model
        self._served = Served(model.value, client)
        self.size = self._served.size

    def embed(self, images: Sequence[ImageLike]) -> Vectors:
        """Return the vectors (N, D) float32, of unit length, of some images; raises the first one's error."""
        return self._served.client.embed_batch(images, model=self._served.name, normalize=True)


def load_model(model: CNNModel = CNNModel.DENSENET_121, *, client: Client | None = None) -> HandModel:
    """Return a network: 1024, 1664 or (RESNET_50: its logits) 1000 numbers.

    client: whose server is asked; None: see `pixvec.compat`. Raises ModelNotFoundError and
    ConnectionFailedError, which say how to serve it.
    """
    return HandModel(model, client)


def calculate_embeddings_from_tensor_dict(
    regions_dict: Mapping[_Key, Any], model: HandModel | None = None
) -> dict[_Key, Array]:
    """Return the vector (D,) of each image, under its key; images are as `calculate_embedding` takes them.

    model: None: DENSENET_121. An error names the key of the first image that does not work.
    """
    pixels: dict[_Key, ImageLike] = {}
    for key, image in regions_dict.items():
        try:
            pixels[key] = _pixels(image)
        except InputError as error:
            raise _of(key, error) from error
    return _embed(pixels, model)


def calculate_embeddings_from_path_dict(
    regions_dict: Mapping[_Key, str | os.PathLike[str]], model: HandModel | None = None
) -> dict[_Key, Array]:
    """Return the vector (D,) of the image at each path or URL, under its key; else as from a tensor dict."""
    return _embed(regions_dict, model)


def calculate_embedding(image: Any, model: HandModel | None = None) -> Array:  # noqa: ANN401 - no torch here
    """Return the vector (D,) float32, of unit length, of one image.

    image: RGB, uint8 or floats within 0..1: an array (h, w, 3) or a torch.Tensor (3, h, w). The type alone
    tells which, so that a picture of 3 rows is no riddle. Raises InputError for another shape.
    """
    vector: Array = (model or _default(shared_client())).embed([_pixels(image)])[0]
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


def _embed(images: Mapping[_Key, ImageLike], model: HandModel | None) -> dict[_Key, Array]:
    keys = list(images)
    try:
        vectors = (model or _default(shared_client())).embed(list(images.values()))
    except PixvecError as error:
        if error.index is None:
            raise
        raise _of(keys[error.index], error) from error
    return dict(zip(keys, vectors, strict=True))


def _of(key: Hashable, error: PixvecError) -> PixvecError:
    return reworded(error, f"regions_dict[{key!r}]: {error.message}")


def _pixels(image: Any) -> Array:  # noqa: ANN401 - an array or a tensor, and torch is not imported to ask
    if isinstance(image, str | os.PathLike):
        raise InputError(f"{image!r} is a path: pass it to calculate_embeddings_from_path_dict")
    if any(base.__module__.partition(".")[0] == "torch" for base in type(image).__mro__):
        if image.ndim != 3 or image.shape[0] not in _CHANNELS:
            raise InputError(f"a tensor is (3, h, w), not {tuple(image.shape)}: use .permute(2, 0, 1)")
        return np.asarray(image.detach().cpu()).transpose(1, 2, 0)
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise InputError(
            f"an array is (h, w, 3), not {array.shape}: use .transpose(1, 2, 0) where the channels are "
            "first, or pass a torch.Tensor"
        )
    return array
