"""The text network that every backend runs, and its tokenizer as plain data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pixvec_server.errors import BundleError
from pixvec_server.manifest import TokenizerRecord

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = "tokenizer.json"
# As open_clip's tokenizer cuts words, ignoring case.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+)"
_SPECIALS = ("<start_of_text>", "<end_of_text>")
_PAIR = 2
_CLEANERS = {
    "_clean_lower": "lower",
    "_clean_whitespace": "whitespace",
    "_clean_canonicalize": "canonicalize",
}


class TextModule(nn.Module):
    """open_clip's text tower: int64 (n, context) tokens in, `embedding` (n, size) in the images' space."""

    outputs = ("embedding",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network: Any = model
        self.dtype = torch.float32

    def narrow(self, dtype: torch.dtype) -> None:
        """Compute in another type; the output stays float32."""
        self.dtype = dtype
        self.network.to(dtype)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor]:
        """Run the tower."""
        return (self.network.encode_text(tokens).float(),)


def write_tokenizer(tokenizer: Any, context: int, path: Path) -> TokenizerRecord:  # noqa: ANN401 - one of two classes
    """Write one of open_clip's tokenizers as `tokenizer.json`, and return what the file cannot say.

    Raises BundleError for a tokenizer that works in a way that cannot be written down.
    """
    clean = _CLEANERS.get(tokenizer.clean_fn.__name__)
    odd = [
        name
        for name in ("reduction_fn", "strip_sep_token", "tokenizer_mode")
        if getattr(tokenizer, name, None)
    ]
    if clean is None or odd:
        raise BundleError(f"the tokenizer's {', '.join(odd) or 'cleaning'} is not supported: towers = image")
    if hasattr(tokenizer, "bpe_ranks"):
        _bpe(tokenizer).save(str(path))
        return TokenizerRecord(
            file=path.name,
            clean=clean,
            context=context,
            begin=tokenizer.sot_token_id,
            end=tokenizer.eot_token_id,
            pad=0,
            specials={word: tokenizer.encoder[word] for word in _SPECIALS},
        )
    for side in ("padding_side", "truncation_side"):
        if getattr(tokenizer.tokenizer, side) != "right":
            raise BundleError(f"a tokenizer's other {side} is not supported: towers = image")
    tokenizer.tokenizer.backend_tokenizer.save(str(path))
    return TokenizerRecord(
        file=path.name, clean=clean, context=context, pad=tokenizer.tokenizer.pad_token_id or 0
    )


def _bpe(tokenizer: Any) -> Any:  # noqa: ANN401 - open_clip ships no types, and the library is optional
    """CLIP's byte-pair encoding, as data: the same tokens as open_clip's own, which is written in Python."""
    library = importlib.import_module("tokenizers")
    made = library.Tokenizer(
        library.models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=[merge for merge in tokenizer.bpe_ranks if len(merge) == _PAIR],
            end_of_word_suffix="</w>",
        )
    )
    words = library.Regex(_WORDS)
    made.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(words, behavior="removed", invert=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made
