"""Several models in one server: each its own space, one decode for all, in memory when they are used."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from support import photos, tiny
from support.servers import Server, serve
from support.waiting import until

import pixvec
from pixvec.v1 import embedding_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
RESNET = "timm:test_resnet.r160_in1k?weights=none"
VIT = "timm:test_vit.r160_in1k?weights=none"
NAMES = ("efficientnet_lite0", "test_resnet.r160_in1k", "test_vit.r160_in1k")


@pytest.fixture(scope="module")
def three() -> Iterator[Server]:
    """The default model and two with random weights."""
    with serve("--model", NAMES[0], "--model", RESNET, "--model", VIT) as running:
        yield running


def test_all_answer_and_their_spaces_differ(three: Server) -> None:
    with pixvec.Client(three.target) as client:
        answer = client.embed_full(photos.data("chelsea.png"), targets=[pixvec.Target(n) for n in NAMES])
        assert [origin.model for origin in answer.origins] == list(NAMES)
        assert len({origin.space for origin in answer.origins}) == 3
        shapes = [vector.vector.shape for vector in answer.embeddings[0]]
        assert shapes[0] == (1280,)
        assert len(set(shapes)) > 1


def test_random_weights_are_loudly_labelled(three: Server) -> None:
    with pixvec.Client(three.target) as client:
        spaces = {model.name: model.outputs[0].space for model in client.models()}
    assert ["untrained" in spaces[name] for name in NAMES] == [False, True, True]
    warned = [line["model"] for line in three.lines() if "RANDOM WEIGHTS" in line["event"]]
    assert warned == list(NAMES[1:])


def test_one_image_for_two_models_is_decoded_once(three: Server) -> None:
    before = three.metric("pixvec_decodes_total")
    answered = [three.metric("pixvec_items_total", model=name, outcome="ok") for name in NAMES]
    with pixvec.Client(three.target) as client:
        client.embed_full(photos.data("coffee.png"), targets=[pixvec.Target(n) for n in NAMES[1:]])
    assert three.metric("pixvec_decodes_total") == before + 1
    after = [three.metric("pixvec_items_total", model=name, outcome="ok") for name in NAMES]
    assert [b - a for a, b in zip(answered, after, strict=True)] == [0, 1, 1]


def test_vectors_of_two_models_are_not_compared(three: Server) -> None:
    with pixvec.Client(three.target) as client:
        of_one = client.embed_full(photos.data("rocket.jpg"), targets=[pixvec.Target(NAMES[0])])
        with pytest.raises(pixvec.SpaceMismatchError, match="queries"):
            client.similarity(of_one, [photos.data("rocket.jpg")], model=NAMES[1])


def test_a_text_for_a_model_of_images_is_refused_in_words(three: Server) -> None:
    request = pb.EmbedRequest(input=pb.Input(text="a cat"))
    with pytest.raises(grpc.RpcError) as caught:
        three.stub().Embed(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "efficientnet_lite0 has no text tower" in caught.value.details()


def test_a_model_loads_at_its_first_use_and_leaves_when_idle() -> None:
    settings = ("--load", "first_use", "--idle-unload", "1")
    with serve("--model", NAMES[0], *settings) as server, pixvec.Client(server.target) as client:
        assert client.model(NAMES[0]).state == "unloaded"
        assert client.model(NAMES[0]).outputs[0].shape == (1280,)
        assert server.metric("pixvec_model_loaded", model=NAMES[0]) == 0
        asleep = server.memory()
        first = client.embed(photos.data("rocket.jpg"))
        awake = server.memory()
        assert client.model(NAMES[0]).state == "ready"
        until(lambda: client.model(NAMES[0]).state == "unloaded")
        until(lambda: any(line["event"] == "model unloaded" for line in server.lines()))
        # The engine's own libraries stay; the weights and its working memory do not.
        assert server.memory() < (asleep + awake) / 2 + (60 << 20)
        assert np.allclose(client.embed(photos.data("rocket.jpg")), first, atol=1e-6)
        assert client.health()


def test_one_load_serves_all_who_come_at_once() -> None:
    with serve("--model", NAMES[0], "--load", "first_use") as server:
        with pixvec.Client(server.target) as client:
            vectors = client.embed_batch([photos.data("rocket.jpg")] * 12)
        assert np.allclose(vectors, vectors[0], atol=1e-5)
        assert sum(line["event"] == "model ready" for line in server.lines()) == 1


def test_a_model_may_stay_while_another_one_goes(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bundles")
    stays, goes = tiny.write(folder / "a", "stays"), tiny.write(folder / "b", "goes", seed=8)
    flags = ("--model", f"stays={stays}", "--model", f"goes={goes}?idle_unload_s=0.2")
    with serve(*flags) as server, pixvec.Client(server.target) as client:
        until(lambda: client.model("goes").state == "unloaded")
        assert client.model("stays").state == "ready"
        assert client.embed(photos.data("rocket.jpg"), model="goes").shape == (32,)
