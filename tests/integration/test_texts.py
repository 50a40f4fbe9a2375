"""A model of two towers: sentences and pictures in one space, through every method of the contract.

Its weights are random, so that what is compared is the way and never the meaning.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import open_clip
import pytest
import torch
from support import oip, photos
from support.servers import ROOT, Server, serve

import pixvec
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server import provision
from pixvec_server.agreement import relative_error
from pixvec_server.module import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CLIP = "clip=open_clip:ViT-S-32-alt/none?weights=none&layer=projected&towers=image,text"
SENTENCES = ["a photo of a cat", "a rocket on its launch pad", "Café “déjà vu” &amp; 東京", ""]
LONG = "very " * 200 + "long"


@pytest.fixture(scope="module")
def clip() -> Iterator[Server]:
    """A server of both towers of a small CLIP."""
    with serve("--model", CLIP) as running:
        yield running


@pytest.fixture(scope="module")
def upstream() -> Any:
    """open_clip's own model, with the weights that ours was made with."""
    spec = provision.parse(CLIP).spec
    assert spec is not None
    ours = build(spec)
    theirs = open_clip.create_model("ViT-S-32-alt", pretrained=None, load_weights=False)
    assert ours.text is not None
    theirs.load_state_dict(ours.text.network.state_dict())
    return theirs.eval()


def test_texts_are_those_of_open_clip(clip: Server, upstream: Any) -> None:
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")([*SENTENCES, LONG])
    with torch.inference_mode():
        expected = upstream.encode_text(tokens).numpy()
    with pixvec.Client(clip.target) as client:
        texts = [pixvec.Text(text) for text in (*SENTENCES, LONG)]
        got = client.embed_batch(texts, normalize=False)
    assert relative_error(got, expected) < 1e-3


def test_both_towers_share_size_and_space(clip: Server) -> None:
    with pixvec.Client(clip.target) as client:
        image = client.embed_full(photos.data("chelsea.png"))
        text = client.embed_full(pixvec.Text("a cat"))
    assert image.origins[0] == text.origins[0]
    assert image.embeddings[0][0].vector.shape == text.embeddings[0][0].vector.shape == (256,)
    assert (text.source.format, text.source.frames, text.source.truncated) == ("text", 0, False)
    assert (text.usage.tokens, text.usage.pixels, image.usage.tokens) == (4, 0, 0)


def test_the_model_tells_its_texts(clip: Server) -> None:
    model = clip.stub().GetModel(pb.GetModelRequest()).model
    assert model.max_text_tokens == 77
    assert model.logit_scale == pytest.approx(1 / 0.07)


def test_a_sentence_finds_images(clip: Server) -> None:
    images = [photos.data(name) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    with pixvec.Client(clip.target) as client:
        scores = client.similarity([pixvec.Text(s) for s in SENTENCES], images)
        texts = client.embed_batch([pixvec.Text(s) for s in SENTENCES])
        vectors = client.embed_batch(images)
        nearest = client.similarity(pixvec.Text("a cat"), images, top_k=2)
    assert np.allclose(scores, texts @ vectors.T, atol=1e-5)
    assert np.asarray(nearest.indices).shape == (1, 2)


def test_words_past_the_context_are_cut_and_said_to_be(clip: Server) -> None:
    with pixvec.Client(clip.target) as client:
        long, longer = (client.embed_full(pixvec.Text(text)) for text in (LONG, LONG * 400))
    assert long.source.truncated
    assert longer.source.truncated
    assert long.usage.tokens == 77
    assert np.allclose(long.embeddings[0][0].vector, longer.embeddings[0][0].vector, atol=1e-5)


def test_texts_and_images_go_together_in_a_batch_and_a_stream(clip: Server) -> None:
    mixed: list[Any] = [pixvec.Text("a cat"), photos.data("rocket.jpg"), pixvec.Text("a rocket")]
    with pixvec.Client(clip.target) as client:
        one_by_one = np.stack([client.embed(item) for item in mixed])
        assert np.allclose(client.embed_batch(mixed), one_by_one, atol=1e-5)
        assert np.allclose(list(client.embed_iter(mixed)), one_by_one, atol=1e-5)
        assert np.allclose(client.embed_text("a cat"), one_by_one[0], atol=1e-5)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.Input(text="a cat", prompt="nonsense"), "clip has none"),
        (pb.Input(text="a cat", regions=[pb.Region(right=9, bottom=9)]), "regions are for images"),
        (pb.Input(image=photos.data("rocket.jpg"), prompt="photo"), "prompts are for texts"),
    ],
)
def test_what_a_text_cannot_have_is_refused(clip: Server, message: pb.Input, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        clip.stub().Embed(pb.EmbedRequest(input=message))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_open_inference_protocol_has_the_texts_under_a_name_of_their_own(clip: Server) -> None:
    with pixvec.Client(clip.target) as client, oip.caller(clip.target) as calls:
        expected = client.embed_batch([pixvec.Text(text) for text in SENTENCES])
        sentences = [text.encode() for text in SENTENCES]
        got = calls.vectors(oip.of_bytes("clip_text", sentences, "text"))
        assert got.tobytes() == expected.tobytes()
        assert calls.ModelMetadata(name="clip_text").inputs[0].name == "text"
        names = [model.name for model in calls.RepositoryIndex().models]
        assert names == ["clip", "clip_pixels", "clip_text"]
        for request, words in (
            (oip.of_bytes("clip_text", [b"a cat", b"\xff"], "text"), "inputs\\[0\\]\\[1\\]: a text is UTF-8"),
            (oip.of_bytes("clip_text", [b"a cat"], "text", outputs=["features"]), "texts have no output"),
        ):
            with pytest.raises(grpc.RpcError, match=words) as caught:
                calls.ModelInfer(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_output_of_the_image_tower_alone_is_that_targets_error(clip: Server) -> None:
    targets = [pb.Target(), pb.Target(output="features")]
    request = pb.EmbedRequest(input=pb.Input(text="a cat"), targets=targets)
    good, bad = clip.stub().Embed(request).embedded.embeddings
    assert good.WhichOneof("outcome") == "vector"
    assert bad.error.reason == pb.REASON_BAD_OPTION
    assert "texts have no output 'features'" in bad.error.message


def test_the_command_ranks_images_by_a_sentence(clip: Server) -> None:
    pictures = [str(photos.path(name)) for name in ("chelsea.png", "rocket.jpg")]
    command = [sys.executable, "-m", "pixvec", "similarity", *pictures, "--text", "a cat"]
    command += ["--target", clip.target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "a cat" in done.stdout
    assert {Path(picture).name in done.stdout for picture in pictures} == {True}
