"""Our tokenizer and open_clip's, which must give a text tower the same numbers for any text there is."""

# ruff: noqa: RUF001 - characters that look like others are what this is about
from __future__ import annotations

import random
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixvec_server.errors import BundleError
from pixvec_server.probes import sentences
from pixvec_server.tokenizer import TextTokenizer

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

import tokenizers as library  # noqa: E402 - open_clip's own dependency
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # noqa: E402
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

from pixvec_server.module.text import write_tokenizer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pixvec_server.manifest import TokenizerRecord

CONTEXT, SHORT = 77, 16
# Pieces that tokenizers disagree about; texts are made of a few of them.
PIECES = (
    *("it's", "WE'LL", "'S", "’s", "I’m", "don't", "''", "'", "'t", "x'", "'ſ", "'K"),
    *("3rd", "12,345.67", "１２", "²", "½", "Ⅷ", "٣", "100%", "$5.00", "2nd"),
    *("café", "cafe\u0301", "ﬁne", "ß", "İ", "ı", "ſ", "ς", "ΑΣ", "Ǆ", "ŉ", "ﷺ", "𝒳", "𐐷", "ᾳ", "\u0345"),
    *("日本語", "한국어", "ไทย", "हिन्दी", "العربية", "עברית", "አማርኛ", "ქართული", "தமிழ்", "Việt"),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🗼", "\U0001f600\U0001f600", "㍿", "\U000e0041"),
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85", "\ufffd"),
    *("\t", "\n", "\r\n", "  ", "\u2028", "\u3000", "\xa0", "\x1c"),
    *("&amp;", "&amp;amp;lt;", "&#39;s", "&#x27;", "&nbsp;", "&bogus;", "&#0;", "&#xD800;", "&lt;b&gt;"),
    *("â€™", "Ã©", "Ã\xa0", "schÃ¶n", "doesnâ€™t", "ðŸ˜€"),
    *("<", "</w>", "low</w>", "_", "__init__", "a_b", "@user", "#tag", "e-mail", "--", "...", "…", "“", "”"),
    *("http://x.y/z?a=b&c=d", "{}", "Ġ", "ġ", "Ā", "ĉ", "word" * 20, "a" * 300, "cat", "dog", "A", "THE"),
    *("<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "<end_of_text", "!<end_of_text>", "[SEP]", "</s>"),
)
# The libraries' tables of letters differ in what the newest Unicode brought.
ASSIGNED = st.characters(exclude_categories=("Cs", "Cn", "Co"))
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
    st.text(ASSIGNED, max_size=40),
)


@dataclass(frozen=True)
class Pair:
    """open_clip's tokenizer, and ours of what was written of it."""

    theirs: Any
    ours: TextTokenizer
    record: TokenizerRecord

    def check(self, text: str) -> None:
        """Fail unless both give the same row, and ours says rightly what it cut."""
        context = self.record.context
        wanted = self.theirs([text], context_length=context)[0].numpy()
        got = self.ours.encode(text)
        assert got.ids.dtype == np.int64
        assert got.ids.tolist() == wanted.tolist(), repr(text)
        assert got.truncated == (self.words(text) > context), repr(text)
        assert got.count == min(self.words(text), context), repr(text)

    def words(self, text: str) -> int:
        """How many tokens a text has, with both ends, when there is room for all; by open_clip's own code."""
        if isinstance(self.theirs, SimpleTokenizer):
            return len(self.theirs.encode(text)) + 2
        return len(
            self.theirs.tokenizer(self.theirs.clean_fn(text), truncation=False, padding=False).input_ids
        )


def _pair(theirs: Any, place: Path, context: int) -> Pair:
    record = write_tokenizer(theirs, context, place)
    return Pair(theirs, TextTokenizer(place.read_bytes(), record), record)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(
        open_clip.get_tokenizer("ViT-B-32"), tmp_path_factory.mktemp("clip") / "tokenizer.json", CONTEXT
    )


def _unigram() -> Any:
    """As SigLIP's: pieces of sentencepiece, an end and no beginning, padding."""
    made = library.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(sentences(), trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _wordpiece() -> Any:
    """As BERT's: both ends, and padding that is not 0."""
    made = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(sentences(), trainer)
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


KINDS: dict[str, Callable[[], Any]] = {"unigram": _unigram, "wordpiece": _wordpiece}
CLEANS = ("canonicalize", "whitespace", "lower")


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Pair]:
    pairs = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        make().save_pretrained(folder)
        for clean in CLEANS:
            theirs = HFTokenizer(str(folder), context_length=SHORT, clean=clean)
            pairs[kind, clean] = _pair(theirs, folder / f"{clean}.json", SHORT)
    return pairs


@pytest.mark.parametrize(
    "text", [*sentences(), *PIECES, " ", "\n\t\u3000", "<end_of_text> <end_of_text>", "\u0345<end_of_text>"]
)
def test_clip_gives_open_clips_numbers(clip: Pair, text: str) -> None:
    clip.check(text)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_clip_gives_open_clips_numbers_for_texts_that_nobody_wrote(clip: Pair, text: str) -> None:
    clip.check(text)


@pytest.mark.parametrize("around", ["{}", "a{}b 1{}2", "'{}s !{}!", "x{}<end_of_text>"])
def test_every_kind_of_character_cuts_words_where_open_clip_cuts_them(clip: Pair, around: str) -> None:
    known = [c for c in range(0x20, 0x20000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    dense = [c for c in known if c < 0x3000]
    picked = dense[::5] + random.Random(1).sample(known, 600)
    for code in picked:
        clip.check(around.replace("{}", chr(code)))


@pytest.mark.parametrize(
    "text", ["!<end_of_text>", "'<start_of_text>", "<<END_OF_TEXT>>", "a.<end_of_text> b"]
)
def test_a_special_word_behind_a_sign_is_no_special_word_to_open_clip_nor_to_us(
    clip: Pair, text: str
) -> None:
    assert not {clip.record.begin, clip.record.end} & set(clip.theirs.encode(text))
    clip.check(text)


def test_a_special_word_that_a_text_spells_out_is_one_token_in_the_middle(clip: Pair) -> None:
    got = clip.ours.encode("a <end_of_text> b")
    assert got.ids[2] == clip.record.end
    assert got.count == 5
    clip.check("a <end_of_text> b")


@pytest.mark.parametrize("words", [74, 75, 76, 200])
def test_clip_says_that_words_were_cut_when_they_were(clip: Pair, words: int) -> None:
    text = " ".join(["cat"] * words)
    got = clip.ours.encode(text)
    assert got.truncated == (words > CONTEXT - 2)
    assert got.count == min(words + 2, CONTEXT)
    assert got.ids[got.count - 1] == clip.record.end
    clip.check(text)


@pytest.mark.parametrize("text", ["word " * 50_000, "a" * 40_000, "🗼" * 40_000, "é<b>" * 20_000])
def test_a_text_of_any_length_is_bounded_and_says_so(clip: Pair, text: str) -> None:
    got = clip.ours.encode(text)
    assert got.truncated
    assert got.count == CONTEXT
    assert got.ids.tolist() == clip.theirs([text])[0].tolist()


def test_whitespace_behind_a_text_is_no_word_that_is_cut(clip: Pair) -> None:
    got = clip.ours.encode("a cat" + " \n" * 50_000)
    assert not got.truncated
    assert got.ids.tolist() == clip.theirs(["a cat"])[0].tolist()


def test_nothing_is_both_ends_and_padding(clip: Pair) -> None:
    for text in ("", "   ", "\x00\x07", "\n"):
        got = clip.ours.encode(text)
        assert (got.count, got.truncated) == (2, False)
        assert got.ids.tolist() == [clip.record.begin, clip.record.end, *[0] * (CONTEXT - 2)]


@pytest.mark.parametrize("clean", CLEANS)
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_tokenizers_give_the_same_numbers(
    hugging_face: dict[tuple[str, str], Pair], kind: str, clean: str
) -> None:
    for text in (*sentences(), *PIECES, "", " ", "cat " * 500):
        hugging_face[kind, clean].check(text)


@pytest.mark.parametrize("clean", CLEANS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_hugging_face_tokenizers_give_the_same_numbers_for_texts_that_nobody_wrote(
    hugging_face: dict[tuple[str, str], Pair], kind: str, clean: str, text: str
) -> None:
    hugging_face[kind, clean].check(text)


@pytest.mark.parametrize(("kind", "ends"), [("unigram", (None, 1)), ("wordpiece", (1, 2))])
def test_a_text_that_is_cut_keeps_its_ends(
    hugging_face: dict[tuple[str, str], Pair], kind: str, ends: tuple[int | None, int]
) -> None:
    got = hugging_face[kind, "whitespace"].ours.encode("cat " * 100)
    assert got.truncated
    assert got.count == SHORT
    assert got.ids[-1] == ends[1]
    assert ends[0] is None or got.ids[0] == ends[0]


@pytest.mark.parametrize("context", [SHORT // 2, SHORT, SHORT * 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_lengths_that_a_file_was_left_with_do_not_count(
    hugging_face: dict[tuple[str, str], Pair], kind: str, context: int, tmp_path: Path
) -> None:
    """transformers leaves the padding and truncation of its last call in the file."""
    theirs = hugging_face[kind, "whitespace"].theirs
    theirs(["a cat"], context_length=SHORT)
    pair = _pair(theirs, tmp_path / "tokenizer.json", context)
    for text in ("a cat", "cat " * 100, ""):
        pair.check(text)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_rows_that_are_filled_or_cut_from_the_left_are_refused(tmp_path: Path, side: str) -> None:
    _unigram().save_pretrained(tmp_path)
    theirs = HFTokenizer(str(tmp_path), context_length=SHORT, **{side: "left"})
    with pytest.raises(BundleError, match=f"{side} is not supported"):
        write_tokenizer(theirs, SHORT, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"strip_sep_token": True}, "strip_sep_token"), ({"tokenizer_mode": "clips"}, "tokenizer_mode")],
)
def test_ways_of_tokenizing_that_a_file_cannot_say_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    _wordpiece().save_pretrained(tmp_path)
    theirs = HFTokenizer(str(tmp_path), context_length=SHORT, **options)
    with pytest.raises(BundleError, match=f"{words} is not supported"):
        write_tokenizer(theirs, SHORT, tmp_path / "out.json")


def test_a_tokenizer_that_drops_words_at_random_is_refused(tmp_path: Path) -> None:
    theirs = SimpleTokenizer(reduction_mask="random")
    with pytest.raises(BundleError, match="reduction_fn is not supported"):
        write_tokenizer(theirs, CONTEXT, tmp_path / "out.json")


def test_eight_threads_share_one_tokenizer(clip: Pair, hugging_face: dict[tuple[str, str], Pair]) -> None:
    pairs = (clip, hugging_face["unigram", "canonicalize"], hugging_face["wordpiece", "whitespace"])
    jobs = [(pair, text) for pair in pairs for text in (*sentences(), *PIECES) for _ in range(4)]
    alone = [pair.ours.encode(text).ids.tolist() for pair, text in jobs]
    random.Random(2).shuffle(order := list(range(len(jobs))))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: jobs[i][0].ours.encode(jobs[i][1]).ids.tolist(), order))
    assert together == [alone[i] for i in order]
