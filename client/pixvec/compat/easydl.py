"""easydl's deep metric learning: its models by its names, its evaluation, its clusters, its image reader.

>>> model = DMLModelManager.get_model("resnet18", embedding_dim=128)   # doctest: +SKIP
>>> model.embed_images(["cat.jpg", "dog.jpg"]).shape                   # doctest: +SKIP
(2, 128)

The server runs the network. A head of `embedding_dim` numbers is part of what it serves: `projection`, a
trained one from a file or, as easydl's without a checkpoint, a random one.

PixvecError
├── UnknownModelError, which is a ValueError too     easydl has no model of that name, or not those weights
└── InputError
    └── ImageLoadError …                             see `smart_read_image`
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import numpy.typing as npt

from pixvec._client import Client
from pixvec._errors import BadOptionError, InputError, PixvecError
from pixvec._inputs import ImageLike, as_many, to_input
from pixvec._types import Array, Embedded, OutputInfo, Target, Vectors

from . import Served
from ._clusters import (
    EmbeddingEvaluationAgglomerativeClustering,
    agglomerative_clustering_pairwise_cosine_distance_with_threshold,
    calculate_clustering_metrics_all_in_one,
    evaluate_embedding_top1_accuracy_ignore_self,
)
from ._images import (
    COMMON_IMAGE_PREPROCESSING_FOR_TESTING,
    COMMON_IMAGE_PREPROCESSING_FOR_TRAINING,
    Base64ImageError,
    FileImageError,
    ImageArgumentError,
    ImageLoadError,
    NetworkImageError,
    Preparation,
    S3ImageError,
    smart_read_and_crop_image_by_box,
    smart_read_image,
    smart_read_image_v2,
)

__all__ = (
    "COMMON_IMAGE_PREPROCESSING_FOR_TESTING",
    "COMMON_IMAGE_PREPROCESSING_FOR_TRAINING",
    "Base64ImageError",
    "DMLModelManager",
    "EfficientNetMetricModel",
    "EmbeddingEvaluationAgglomerativeClustering",
    "FileImageError",
    "HFVitModel",
    "ImageArgumentError",
    "ImageLoadError",
    "MetricModel",
    "NetworkImageError",
    "Resnet18MetricModel",
    "Resnet50MetricModel",
    "S3ImageError",
    "UnknownModelError",
    "VitMetricModel",
    "agglomerative_clustering_pairwise_cosine_distance_with_threshold",
    "calculate_clustering_metrics_all_in_one",
    "calculate_cosine_similarity_matrix",
    "create_pairwise_similarity_ground_truth_matrix",
    "evaluate_embedding_top1_accuracy_ignore_self",
    "evaluate_pairwise_score_matrix_with_true_label",
    "smart_read_and_crop_image_by_box",
    "smart_read_image",
    "smart_read_image_v2",
)

_V1 = "IMAGENET1K_V1"
_RESNETS = ("resnet18", "resnet50")
_VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
_EFFICIENTNETS = tuple(f"efficientnet_b{size}" for size in range(8))
_HF_EXAMPLE = "google/vit-base-patch16-224-in21k"
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
        _check_dimensions(embedding_dim)
        flag = preset if embedding_dim is None else f"{preset}?projection={embedding_dim}"
        self._preset = preset
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

    def to(self, *_device: object) -> Self:
        """Return the model: the server chose its device, which its own settings name."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Return the model for mode False. Raises NotImplementedError for True: nothing is trained here."""
        if mode:
            raise NotImplementedError("train(): a server never trains; train with easydl, serve the result")
        return self

    def load_state_dict(self, *_state: object, **_options: object) -> NoReturn:
        """Refuse: the weights are the server's. Raises NotImplementedError with the command."""
        raise NotImplementedError(
            "load_state_dict(): the weights are part of what the server serves: pixvec-server serve --model "
            f"'{self._preset}?weights=FILE&projection=HEAD', of the backbone and of the head"
        )

    def get_image_transform_function(self) -> Preparation:
        """Return a stand-in that says what to call: the server prepares the pixels, and they stay there."""
        return Preparation("get_image_transform_function()")

    def get_embedding_dim(self) -> int:
        """Return the length of the vectors."""
        return self._served.size

    def embed_image(self, image: ImageLike) -> Vectors:
        """Return the vector (D,) float32 of a PIL image, or of anything that `pixvec.to_input` takes."""
        kept = _kept(image)
        vector = self._served.client.embed(kept, **self._served.wanted(normalize=self.normalized))
        self._last = [kept]
        return vector

    def embed_images(self, images: Iterable[ImageLike]) -> Vectors:
        """Return the vectors (N, D) float32 of some images, of unit length where easydl's are."""
        kept = [_kept(image) for image in as_many(images)]
        vectors = self._served.client.embed_batch(kept, **self._served.wanted(normalize=self.normalized))
        self._last = kept
        return vectors

    def get_features(self, images: Iterable[ImageLike] | None = None) -> dict[str, Array]:
        """Return what lies behind the vectors of some images; None: of those that were embedded last.

        pre_pooling: the map, (N, C, H, W) of a convolutional network, (N, T, C) of a transformer.
        post_pooling: (N, C). embedding: (N, D), not scaled to unit length. Raises BadOptionError before
        anything was embedded and for a model without one of these.
        """
        asked = self._last if images is None else list(as_many(images))
        if asked is None:
            raise BadOptionError("get_features() of which images? Embed some first, or pass them")
        outputs = self._outputs()
        targets = [
            Target(self._served.name, output.name, normalize=False, space=output.space) for output in outputs
        ]
        answers = self._served.client.embed_batch_full(asked, targets=targets)
        rows = [_row(answer) for answer in answers]
        return {
            name: np.stack([row[at] for row in rows]) if rows else np.empty((0, *output.shape), np.float32)
            for at, (name, output) in enumerate(zip(_FEATURES, outputs, strict=True))
        }

    def get_features_from_image(self, image: ImageLike) -> dict[str, Array]:
        """Return the features of one image, N = 1."""
        return self.get_features([image])

    def _outputs(self) -> Sequence[OutputInfo]:
        served = {output.name: output for output in self._served.info.outputs}
        missing = [f"{name} ({output})" for name, output in _FEATURES.items() if output not in served]
        if missing:
            raise BadOptionError(
                f"{self._served.name} has no {', '.join(missing)}; its outputs are {', '.join(served)}: ask "
                "pixvec.Client for one by output="
            )
        return [served[output] for output in _FEATURES.values()]


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
        weights_suffix: str = _V1,
        *,
        efficient_model_name: str = "",
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        preset = _preset(efficient_model_name or model_name, _EFFICIENTNETS, weights_suffix)
        super().__init__(preset, embedding_dim, served_as, client)


class HFVitModel(MetricModel):
    """A vision transformer of transformers without a head; its vectors are not scaled to unit length.

    model_name, pretrained_model_name: of its repository; the server serves it under the last part of that,
    in lower case.
    """

    normalized = False

    def __init__(
        self,
        model_name: str = _HF_EXAMPLE,
        *,
        pretrained_model_name: str = "",
        served_as: str = "",
        client: Client | None = None,
    ) -> None:
        name = pretrained_model_name or model_name
        if not isinstance(name, str) or not name.rpartition("/")[2]:
            raise UnknownModelError(f"model_name = {name!r}: give a repository, {_HF_EXAMPLE!r}")
        super().__init__(name.rpartition("/")[2].lower(), None, served_as, client)


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


def calculate_cosine_similarity_matrix(embedding_matrix: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the cosines (N, N) of vectors (N, D), arrays or tensors; see `pixvec.dataset.evaluation`."""
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    return evaluation.cosine_similarity_matrix(_plain(embedding_matrix))


def create_pairwise_similarity_ground_truth_matrix(labels: Sequence[Any] | Array) -> npt.NDArray[np.int64]:
    """Return 1 where two of the labels (N,) or (N, 1) are the same and 0 elsewhere, (N, N).

    Raises InputError for labels of another shape and for one that is missing (None, NaN or "").
    """
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    if not hasattr(labels, "__array__"):
        return evaluation.truth_matrix([_scalar(label) for label in labels])
    array = np.asarray(_plain(labels))
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise InputError(f"labels has shape {array.shape}: pass one for each row, (N,)")
    return evaluation.truth_matrix(array.ravel())


def evaluate_pairwise_score_matrix_with_true_label(
    y_true_matrix: npt.ArrayLike, y_score_matrix: npt.ArrayLike
) -> dict[str, Any]:
    """Return top1_accuracy, pr_auc, precision_list, recall_list and threshold_list of scores (N, N).

    They are defined in `pixvec.dataset.evaluation.score_pairs`. Raises ShapeMismatchError, which is a
    ValueError, unless both matrices are (N, N). Needs scikit-learn.
    """
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does

    scores = evaluation.score_pairs(_plain(y_true_matrix), _plain(y_score_matrix))
    return {
        "top1_accuracy": scores["top1_accuracy"],
        "pr_auc": scores["pr_auc"],
        "precision_list": scores["precision"],
        "recall_list": scores["recall"],
        "threshold_list": scores["thresholds"],
    }


def _check_dimensions(given: int | None) -> None:
    whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if given is not None and not (whole and given > 0):
        raise BadOptionError(
            f"embedding_dim = {given!r}: give a whole number of 1 or more, or None for no head"
        )


def _plain(given: Any) -> Any:  # noqa: ANN401 - an array or a tensor, and torch is not imported to ask
    """Return what numpy can read: of a tensor, which may want gradients or lie on a device, its numbers."""
    return np.asarray(given.detach().cpu()) if hasattr(given, "detach") else given


def _scalar(label: Any) -> Any:  # noqa: ANN401 - whatever labels are
    # Two tensors of one number are two keys of a dict: labels are told apart by what they hold.
    return _plain(label).item() if hasattr(label, "item") else label


def _kept(image: ImageLike) -> ImageLike:
    """Return the image, or what a file object holds: it may be asked for again, and a file ends."""
    return to_input(image) if hasattr(image, "read") else image


def _preset(name: str, known: Sequence[str], weights: str = _V1) -> str:
    lower = name.lower() if isinstance(name, str) else ""
    if lower not in known:
        raise UnknownModelError(f"no model is called {name!r}; known: {', '.join(known)}")
    tag = weights.upper() if isinstance(weights, str) else ""
    if tag == _V1:
        return f"easydl-{lower}"
    if preset := _PRESETS.get((lower, tag)):
        return preset
    raise UnknownModelError(
        f"{name} has no weights {weights!r} here, only {_V1}: serve a checkpoint of yours by "
        f"--model 'easydl-{lower}?weights=FILE'"
    )


def _row(answer: Embedded | PixvecError) -> list[Vectors]:
    if isinstance(answer, PixvecError):
        raise answer
    return [embedding.vector for embedding in answer.embeddings[0]]
