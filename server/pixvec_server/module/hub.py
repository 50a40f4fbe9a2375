"""Asking the hub that timm, open_clip and transformers fetch from, with one kind of error, and soon."""

from __future__ import annotations

import http.client
import pickle
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, errors

from pixvec_server.errors import BundleError
from pixvec_server.module.weights import asked_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixvec_server.spec import ModelSpec

_ANSWER_S = 5.0
_HUBS = ("timm", "open_clip", "hf")
# What libraries fail with when they cannot have a file, or not the one that they wanted.
_FAILURES = (
    errors.HfHubHTTPError,
    errors.LocalEntryNotFoundError,
    errors.OfflineModeIsEnabled,
    errors.HFValidationError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
)
_SAFE_NAMES = {
    None: "model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}


@contextmanager
def asking(spec: ModelSpec) -> Iterator[None]:
    """Let the body fetch a model's files; of a hub that does not answer, only what its cache has.

    Raises BundleError that says what can be done, whatever a library fails with.
    """
    remote = spec.kind in _HUBS and spec.weights == "pretrained" and not Path(spec.location).is_dir()
    before = constants.HF_HUB_OFFLINE
    state = _state() if remote else ""
    constants.HF_HUB_OFFLINE = before or bool(state)
    try:
        yield
    except _FAILURES as exc:
        words = f"{state}, and it is not in the hub's cache on this machine" if state else _words(exc)
        raise BundleError(
            f"{spec.name}: {spec.source} could not be fetched: {words}. "
            f"Make the bundle where the hub can be reached (pixvec-server export {spec.name} -o DIR) and "
            f"serve --model {spec.name}=DIR; or give a checkpoint (weights = PATH); or weights = none, random"
        ) from exc
    finally:
        constants.HF_HUB_OFFLINE = before


def safe_name(published: str | None) -> str:
    """Return what the file of weights is called that carries no code, beside the one that is published."""
    known = _SAFE_NAMES.get(published)
    return known or f"{str(published).removesuffix('.bin').removesuffix('.safetensors')}.safetensors"


def _state() -> str:
    """Return why the hub is not asked, or "" when it answers; libraries ask a silent one for minutes."""
    if constants.HF_HUB_OFFLINE:
        return "offline mode is on"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310
        urllib.request.urlopen(request, timeout=_ANSWER_S).close()  # noqa: S310 - it is the operator's
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return f"the hub at {constants.ENDPOINT} does not answer ({getattr(exc, 'reason', exc)})"
    return ""


def _words(exc: BaseException) -> str:
    told: BaseException | None = exc
    while told is not None and not asked_for(told):
        told = told.__cause__ or told.__context__
    if told is not None:
        asked = asked_for(told)
        return f"its pickle holds more than tensors and is not read: it asks for {asked}"
    words = str(exc).strip().splitlines()
    return words[0] if words else type(exc).__name__
