"""From a text to a text tower's tokens, without torch: cleaned, cut into tokens, bounded to the context."""

from __future__ import annotations

import html
import importlib
import string
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from pixvec_server.manifest import TokenizerRecord

# No context holds more: the rest of a longer text is not even looked at.
_MAX_CHARACTERS = 32_768
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text: int64 ids (context,), how many of them are no padding, and whether words were cut off."""

    ids: NDArray[np.int64]
    count: int
    truncated: bool


class TextTokenizer:
    """A text tower's tokenizer, of a `tokenizer.json` and what that file cannot say. Threads may share it.

    Raises BundleError when the libraries or the file are not what the bundle needs.
    """

    def __init__(self, data: bytes, record: TokenizerRecord) -> None:
        self._record = record
        tokenizers, self._fix = _libraries()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as exc:  # the library raises plain Exception
            raise BundleError(f"{record.file} is no tokenizer: {exc}") from exc
        self._own_ends = record.begin is None
        # A file remembers what it was last used with.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self._own_ends:
            self._tokenizer.enable_truncation(record.context)

    def encode(self, text: str) -> Tokens:
        """Turn a text into one row of the tower's input."""
        record = self._record
        cleaned = self._clean(text[:_MAX_CHARACTERS])
        truncated = bool(text[_MAX_CHARACTERS:].strip())
        if record.begin is not None and record.end is not None:
            ids = [record.begin, *self._numbers(cleaned), record.end]
            if len(ids) > record.context:
                ids, truncated = [*ids[: record.context - 1], record.end], True
        else:
            encoded = self._tokenizer.encode(cleaned)
            ids, truncated = list(encoded.ids), truncated or bool(encoded.overflowing)
        row = np.full(record.context, record.pad, np.int64)
        row[: len(ids)] = ids
        return Tokens(row, len(ids), truncated)

    def _numbers(self, text: str) -> list[int]:
        """Cut a cleaned text into tokens, its special words being tokens by themselves."""
        numbers: list[int] = []
        for part in _parts(text, self._record.specials):
            special = self._record.specials.get(part)
            plain = (
                self._tokenizer.encode(part, add_special_tokens=False).ids if special is None else [special]
            )
            numbers += plain
        return numbers

    def _clean(self, text: str) -> str:
        """Clean a text as open_clip does: mend broken encodings, undo HTML, then by the model's own way."""
        if self._record.clean == "none":
            return text
        mended = html.unescape(html.unescape(self._fix(text))).strip()
        if self._record.clean == "canonicalize":
            mended = mended.replace("_", " ").translate(_NO_PUNCTUATION)
        spaced = " ".join(mended.split())
        return spaced if self._record.clean == "whitespace" else spaced.lower()


def _parts(text: str, specials: Mapping[str, int]) -> Iterator[str]:
    """Cut special words out of a text, but for those behind a sign: they continue its run of signs."""
    if not any(word in text for word in specials):
        yield text
        return
    start = at = 0
    while at < len(text):
        free = at == start or text[at - 1].isspace() or _is_letter_or_number(text[at - 1])
        word = next((word for word in specials if free and text.startswith(word, at)), None)
        if word is None:
            at += 1
            continue
        if at > start:
            yield text[start:at]
        yield word
        start = at = at + len(word)
    if start < len(text):
        yield text[start:]


def _is_letter_or_number(sign: str) -> bool:
    # The iota below is a mark, which the tokenizers' expressions fold to a letter.
    return unicodedata.category(sign)[0] in "LN" or sign == "\u0345"


def _libraries() -> tuple[Any, Callable[[str], str]]:
    try:
        return importlib.import_module("tokenizers"), importlib.import_module("ftfy").fix_text
    except ModuleNotFoundError as exc:
        raise BundleError(f"a text tower needs {exc.name}: pip install 'pixvec[text]'") from exc
