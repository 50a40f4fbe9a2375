"""Checkpoints as tensors by name, and what they hash to. Nothing here runs code that a file brings."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pixvec_server.errors import BundleError
from pixvec_server.models.wheel import weights_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Where training loops keep the network inside of a checkpoint.
_WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model", "network")
_SHOWN = 4
_ASKED_FOR = re.compile(r"GLOBAL (\S+)")


def read_checkpoint(path: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors, without the `module.` that DataParallel puts before their names.

    Pickles (.pt, .pth, .bin, .ckpt) are read only when `allow_pickle` is set, and then by torch's
    `weights_only` unpickler. Raises BundleError that names the file and the mend.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        return _stripped(_read_safetensors(path))
    if path.suffix not in _PICKLES:
        known = ", ".join((".safetensors", *_PICKLES))
        raise BundleError(f"{path}: weights come as {known}; a graph as .onnx")
    if not allow_pickle:
        raise BundleError(
            f"{path} is a pickle, which may carry code: convert it to .safetensors, or say "
            "allow_pickle = true to read its tensors and nothing else"
        )
    return _stripped(read_pickle(path))


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return a pickle's tensors by torch's restricted unpickler. Raises BundleError for anything else."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as exc:  # the unpickler raises anything on hostile bytes, and its own words invite to trust
        asked = asked_for(exc)
        what = f": it asks for {asked}" if asked else ""
        raise BundleError(f"{path} holds more than tensors, or is damaged, and is not read{what}") from exc
    for name in _WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
            break
    return _table(held, path)


def asked_for(exc: BaseException) -> str:
    """Return the function that a pickle wanted to call, by the words of torch's unpickler; else ""."""
    found = _ASKED_FOR.search(str(exc))
    return found[1] if found else ""


def read_wheel(package: str) -> dict[str, torch.Tensor]:
    """Return the weights that an installed package carries. Raises BundleError when there are none."""
    return read_pickle(weights_file(package))


def fill(network: nn.Module, given: Mapping[str, torch.Tensor], source: str) -> None:
    """Load tensors by name. Raises BundleError that lists what is missing, too much or of another shape."""
    own = network.state_dict()
    wrong = list(_differences(own, given))
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise BundleError(f"{source} does not fit the network: {'; '.join(wrong[:_SHOWN])}{more}")
    network.load_state_dict(dict(given))


def fill_in_order(network: nn.Module, given: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a port's tensors, which come in the network's order under other names."""
    own = network.state_dict()
    if len(own) != len(given):
        raise BundleError(f"{source} has {len(given)} tensors, the architecture {len(own)}")
    fill(network, dict(zip(own, given.values(), strict=True)), source)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, shapes and fp32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().to(torch.float32).contiguous().numpy()
        digest.update(f"{name} {list(values.shape)} ".encode())
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as exc:
        raise BundleError(f"{path} is no whole safetensors file: {exc}") from exc
    return _table(tensors, path)


def _table(held: object, path: Path) -> dict[str, torch.Tensor]:
    """Return plain tensors of real numbers by name, each as large as what was read of it."""
    if not isinstance(held, dict) or not all(_is_plain(value) for value in held.values()):
        raise BundleError(f"{path} is no table of tensors")
    return {str(name): value for name, value in held.items()}


def _is_plain(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    held: int = value.untyped_storage().nbytes()
    return not value.is_complex() and held >= value.numel() * value.element_size()


def _stripped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _differences(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> Iterator[str]:
    for name, tensor in own.items():
        if name not in given:
            yield f"{name} is missing"
        elif given[name].shape != tensor.shape:
            yield f"{name} has shape {list(given[name].shape)}, expected {list(tensor.shape)}"
    for name in given:
        if name not in own:
            yield f"{name} is unknown"
