"""easydl's deep metric learning: its models by its names, and its evaluation.

>>> model = DMLModelManager.get_model("resnet18", embedding_dim=128)   # doctest: +SKIP
>>> model.embed_images(["cat.jpg", "dog.jpg"]).shape                   # doctest: +SKIP
(2, 128)

The server runs the network. A head of `embedding_dim` numbers is part of what it serves: `projection`, a
trained one from a file or, as easydl's without a checkpoint, a random one.

PixvecError
└── UnknownModelError, which is a ValueError too     easydl has no model of that name, or not those weights
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pixvec._client import Client
from pixvec._errors import BadOptionError, PixvecError
from pixvec._inputs import ImageLike
from pixvec._types import Array, Embedded, Target, Vectors

from . import Served

_V1 = "IMAGENET1K_V1"
_RESNETS = ("resnet18", "resnet50")
_VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
_EFFICIENTNETS = tuple(f"efficientnet_b{size}" for size in range(8))
# Other weights than the first of torchvision's, by model and weights.
_PRESETS = {("resnet50", "IMAGENET1K_V2"): "easydl-resnet50-v2"}
# easydl's name of a feature -> the server's output.
_FEATURES = {"pre_pooling": "features", "post_pooling": "pooled", "embedding": "embedding"}


class UnknownModelError(PixvecError, ValueError):
    """No model goes by that name, or it has no such weights; the message lists those that are known."""

    default_code = "INVALID_ARGUMENT"


class MetricModel:
    """What easydl's models share, over one model of a server.

    name: of the model that the server serves. embedding_dim: length of its vectors, checked at once; None:
    any. Raises ModelNotFoundError and ConnectionFailedError, which say how to serve the model, and
    BadOptionError for another length.
    """

    normalized: ClassVar[bool] = True

    def __init__(
        self, preset: str, embedding_dim: int | None, served_as: str = "", client: Client | None = None
    ) -> None:
        flag = preset if embedding_dim is None else f"{preset}?projection={embedding_dim}"
        self._served = Served(served_as or preset, client, flag)
        self._last: Sequence[ImageLike] | None = None
        if embedding_dim not in {None, self._served.size}:
            raise BadOptionError(
                f"embedding_dim = {embedding_dim}, and the server's {self._served.name} gives "
                f"{self._served.size} numbers; serve it with a trained head of that size, projection=FILE, "
                f"or a random one: {self._served.command}"
            )

    @property
    def embedding_dim(self) -> int:
        """Length of the vectors."""
        return self._served.size

    def __call__(self, images: Iterable[ImageLike]) -> Vectors:
        """Return what `embed_images` does. What was prepared for a network is refused: pass the images."""
        return self.embed_images(images)

    def eval(self) -> Self:
        """Return the model: a server's never trains."""
        return self

    def embed_image(self, image: ImageLike) -> Vectors:
        """Return the vector (D,) float32 of a PIL image, or of anything that `pixvec.to_input` takes."""
        self._last = [image]
        return self._served.client.embed(image, model=self._served.name, normalize=self.normalized)

    def embed_images(self, images: Iterable[ImageLike]) -> Vectors:
        """Return the vectors (N, D) float32 of some images, of unit length where easydl's are."""
        self._last = list(images)
        return self._served.client.embed_batch(self._last, model=self._served.name, normalize=self.normalized)

    def get_features(self, images: Iterable[ImageLike] | None = None) -> dict[str, Array]:
        """Return what lies behind the vectors of some images; None: of those that were embedded last.

        pre_pooling: the map, (N, C, H, W) of a convolutional network, (N, T, C) of a transformer.
        post_pooling: (N, C). embedding: (N, D), not scaled to unit length. Raises BadOptionError before
        anything was embedded and for a model without one of these.
        """
        asked = self._last if images is None else list(images)
        if asked is None:
            raise BadOptionError("get_features() of which images? Embed some first, or pass them")
        targets = [Target(self._served.name, output, normalize=False) for output in self._outputs()]
        answers = self._served.client.embed_batch_full(asked, targets=targets)
        rows = [_row(answer) for answer in answers]
        return {name: np.stack([row[at] for row in rows]) for at, name in enumerate(_FEATURES)}

    def get_features_from_image(self, image: ImageLike) -> dict[str, Array]:
        """Return the features of one image, N = 1."""
        return self.get_features([image])

    def _outputs(self) -> Sequence[str]:
        served = [output.name for output in self._served.info.outputs]
        missing = [f"{name} ({output})" for name, output in _FEATURES.items() if output not in served]
        if missing:
            raise BadOptionError(
                f"{self._served.name} has no {', '.join(missing)}; its outputs are {', '.join(served)}: ask "
                "pixvec.Client for one by output="
            )
        return list(_FEATURES.values())


class Resnet18MetricModel(MetricModel):
    """ResNet-18 with a head of `embedding_dim` numbers."""

    def __init__(
        self, embedding_dim: int | None = 128, *, served_as: str = "", client: Client | None = None
    ) -> None:
        super().__init__("easydl-resnet18", embedding_dim, served_as, client)


class Resnet50MetricModel(MetricModel):
    """ResNet-50 with a head of `embedding_dim` numbers; weights IMAGENET1K_V1 or IMAGENET1K_V2."""

    def __init__(
        self,
        embedding_dim: int | None = 128,
        weights_suffix: str = _V1,
        *,
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        preset = _preset("resnet50", ("resnet50",), weights_suffix)
        super().__init__(preset, embedding_dim, served_as, client)


class VitMetricModel(MetricModel):
    """A vision transformer with a head; `vit_model_name` and `weights` are other words for the arguments."""

    def __init__(
        self,
        model_name: str = "vit_b_16",
        embedding_dim: int | None = 128,
        weights_suffix: str = _V1,
        *,
        vit_model_name: str = "",
        weights: str = "",
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        preset = _preset(vit_model_name or model_name, _VITS, weights or weights_suffix)
        super().__init__(preset, embedding_dim, served_as, client)


class EfficientNetMetricModel(MetricModel):
    """An EfficientNet with a head; `efficient_model_name` is another word for `model_name`."""

    def __init__(
        self,
        model_name: str = "efficientnet_b4",
        embedding_dim: int | None = 128,
        *,
        efficient_model_name: str = "",
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        preset = _preset(efficient_model_name or model_name, _EFFICIENTNETS)
        super().__init__(preset, embedding_dim, served_as, client)


class HFVitModel(MetricModel):
    """A vision transformer of transformers without a head; its vectors are not scaled to unit length.

    model_name: of its repository; the server serves it under the last part of that, in lower case.
    """

    normalized = False

    def __init__(
        self,
        model_name: str = "google/vit-base-patch16-224-in21k",
        *,
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        super().__init__(model_name.rpartition("/")[2].lower(), None, served_as, client)


class DMLModelManager:
    """Models by name."""

    @staticmethod
    def get_model(
        name: str,
        embedding_dim: int | None = 128,
        *,
        served_as: str = "",
        client: Client | None = None,
    ) -> MetricModel:
        """Return the model of a name, in any case: a ResNet, an EfficientNet or a vision transformer.

        served_as: the model's name at the server, where that is not `easydl-NAME`. Raises UnknownModelError.
        """
        preset = _preset(name, (*_RESNETS, *_EFFICIENTNETS, *_VITS))
        return MetricModel(preset, embedding_dim, served_as, client)


def calculate_cosine_similarity_matrix(embeddings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the cosines (N, N) of vectors (N, D); see `pixvec.dataset.evaluation`."""
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    return evaluation.cosine_similarity_matrix(embeddings)


def create_pairwise_similarity_ground_truth_matrix(labels: Sequence[Any] | Array) -> npt.NDArray[np.int64]:
    """Return 1 where two of the labels (N,) are the same and 0 elsewhere, (N, N)."""
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    return evaluation.truth_matrix(labels)


def evaluate_pairwise_score_matrix_with_true_label(
    pairwise_similarity_ground_truth_matrix: npt.ArrayLike, pairwise_score_matrix: npt.ArrayLike
) -> dict[str, Any]:
    """Return top1_accuracy, pr_auc, precision_list, recall_list and threshold_list of scores (N, N).

    They are defined in `pixvec.dataset.evaluation.score_pairs`. Raises ShapeMismatchError, which is a
    ValueError, unless both matrices are (N, N). Needs scikit-learn.
    """
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    scores = evaluation.score_pairs(pairwise_similarity_ground_truth_matrix, pairwise_score_matrix)
    return {
        "top1_accuracy": scores["top1_accuracy"],
        "pr_auc": scores["pr_auc"],
        "precision_list": scores["precision"],
        "recall_list": scores["recall"],
        "threshold_list": scores["thresholds"],
    }


def _preset(name: str, known: Sequence[str], weights: str = _V1) -> str:
    lower = name.lower()
    if lower not in known:
        raise UnknownModelError(f"no model is called {name!r}; known: {', '.join(known)}")
    if weights.upper() == _V1:
        return f"easydl-{lower}"
    if preset := _PRESETS.get((lower, weights.upper())):
        return preset
    raise UnknownModelError(
        f"{name} has no weights {weights!r} here, only {_V1}: serve a checkpoint of yours by "
        f"--model 'easydl-{lower}?weights=FILE'"
    )


def _row(answer: Embedded | PixvecError) -> list[Vectors]:
    if isinstance(answer, PixvecError):
        raise answer
    return [embedding.vector for embedding in answer.embeddings[0]]
