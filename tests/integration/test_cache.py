"""What is kept of the answers: through a pipeline of real models, and through a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support import oip, photos, tiny
from support.servers import CACHE, Server, serve

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.app import Front, engines
from pixvec_server.config import load
from pixvec_server.errors import RequestError
from pixvec_server.metrics import Metrics
from pixvec_server.pipeline import Pipeline
from pixvec_server.types import (
    WHOLE,
    Content,
    Embedded,
    Encoded,
    Encoding,
    Input,
    Pixels,
    Region,
    State,
    Target,
    Text,
)

PNG = photos.data("chelsea.png")
JPEG = photos.jpeg("rocket.jpg")
BOX = Region(20, 30, 240, 250)
CLIP = "clip=open_clip:ViT-S-32-alt/none?weights=none&layer=projected&towers=image,text"
MIB = 1 << 20


class Kitchen:
    """A pipeline in this process, and what it has counted."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics) -> None:
        self.pipeline = pipeline
        self._metrics = metrics

    async def embed(self, item: Input, *targets: Target, **rest: Any) -> Any:
        """Embed one input for a minute at most; return its result and the cost."""
        plan = self.pipeline.plan(targets or (Target(),))
        deadline = asyncio.get_running_loop().time() + 60
        answer = await self.pipeline.embed([item], plan, deadline=deadline, **rest)
        return answer.results[0], answer.cost

    def count(self, name: str, model: str = "tiny") -> float:
        """Return a counter's value."""
        value = self._metrics.registry.get_sample_value
        return value(f"pixvec_{name}", {"model": model}) or value(f"pixvec_{name}") or 0.0

    def counts(self) -> tuple[float, ...]:
        """Return decodes, items computed, hits, joins and misses."""
        lookups = (self.count(f"cache_{how}_total") for how in ("hits", "joins", "misses"))
        return self.count("decodes_total"), self.count("batch_size_sum"), *lookups


@asynccontextmanager
async def _kitchen(*models: str | Path, cache: int = MIB, **flags: Any) -> AsyncIterator[Kitchen]:
    flags = {key.replace("__", "."): value for key, value in flags.items()}
    flags |= {"cache.max_bytes": cache, "model.names": [str(model) for model in models]}
    config, metrics = load(flags=flags, environ={}), Metrics()
    served = engines(config, metrics, CACHE)
    front = Front(config, served, metrics)
    try:
        for engine in served:
            await engine.start()
        yield Kitchen(front.pipeline, metrics)
    finally:
        await front.close()
        for engine in served:
            await engine.stop()


def _data(result: Any) -> list[bytes]:
    assert isinstance(result, Embedded), result
    assert not any(isinstance(one.outcome, RequestError) for one in result.embeddings), result
    return [one.outcome.data for one in result.embeddings]  # type: ignore[union-attr] # just checked


def test_a_hit_is_bit_equal_and_takes_neither_decode_nor_batch(tiny_bundle: Path) -> None:
    array = np.asarray(photos.image("chelsea.png"))
    contents: list[Content] = [Encoded(PNG), Encoded(JPEG), Pixels(array.shape, array.tobytes())]
    assert array.nbytes > 256 << 10  # hashed on another thread

    async def main() -> None:
        async with _kitchen(f"tiny={tiny_bundle}") as kitchen:
            for i, content in enumerate(contents, 1):
                first, cost = await kitchen.embed(Input(content))
                again, then = await kitchen.embed(Input(content))
                assert again == first
                assert (cost.vectors, cost.cached, then.vectors, then.cached) == (1, 0, 1, 1)
                assert cost.pixels == first.source.width * first.source.height
                assert (then.pixels, then.decode_s, then.queue_s, then.compute_s) == (0, 0, 0, 0)
                assert kitchen.counts() == (i, i, i, 0, i)

    asyncio.run(main())


def test_the_callers_options_are_applied_to_what_is_kept(tiny_bundle: Path) -> None:
    targets = [
        Target(dimensions=8),
        Target(normalize=False),
        Target(dimensions=16, encoding=Encoding.INT8),
        Target(model="tiny-alias", encoding=Encoding.FLOAT16),
    ]

    async def main() -> None:
        async with (
            _kitchen(f"tiny={tiny_bundle}") as kitchen,
            _kitchen(f"tiny={tiny_bundle}", cache=0) as bare,
        ):
            await kitchen.embed(Input(Encoded(PNG)))
            for target in targets:
                got, _ = await kitchen.embed(Input(Encoded(PNG)), target)
                assert got == (await bare.embed(Input(Encoded(PNG)), target))[0]
            assert kitchen.counts() == (1, 1, 4, 0, 1)
            assert bare.counts() == (4, 4, 0, 0, 0)

    asyncio.run(main())


def test_what_is_missing_is_inferred_from_one_decode(tiny_bundle: Path) -> None:
    whole, both = Input(Encoded(PNG)), Input(Encoded(PNG), (BOX, WHOLE))
    features = (Target(), Target(output="features"))

    async def main() -> None:
        async with (
            _kitchen(f"tiny={tiny_bundle}") as kitchen,
            _kitchen(f"tiny={tiny_bundle}", cache=0) as bare,
        ):
            await kitchen.embed(whole)
            got, cost = await kitchen.embed(both)
            assert got == (await bare.embed(both))[0]
            assert (cost.vectors, cost.cached, cost.pixels) == (2, 1, 451 * 300)
            assert kitchen.counts() == (2, 2, 1, 0, 2)
            got, cost = await kitchen.embed(both, *features)
            assert got == (await bare.embed(both, *features))[0]
            assert (cost.vectors, cost.cached) == (4, 2)
            assert kitchen.counts() == (3, 4, 3, 0, 4)
            empty = Input(Encoded(PNG), (WHOLE, Region(9000, 0, 9001, 9), Region(9000, 0, 9001, 9)))
            for _ in range(2):
                got, _ = await kitchen.embed(empty)
                bad = [one.outcome for one in got.embeddings[1:]]
                assert [one.field for one in bad] == ["regions[1]", "regions[2]"]

    asyncio.run(main())


def test_whatever_decides_a_vector_is_in_its_name(tiny_bundle: Path, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other", "other", seed=8)

    async def main() -> None:
        async with _kitchen(f"tiny={tiny_bundle}", f"other={other}") as kitchen:
            one, _ = await kitchen.embed(Input(Encoded(PNG)))
            two, cost = await kitchen.embed(Input(Encoded(PNG)), Target("other"))
            assert cost.cached == 0
            assert _data(one) != _data(two)
            _, cost = await kitchen.embed(Input(Encoded(PNG)), Target("other"), Target())
            assert cost.cached == 2
            for tenant in ("a", "b"):
                _, cost = await kitchen.embed(Input(Encoded(PNG)), tenant=tenant)
                assert cost.cached == 0
            _, cost = await kitchen.embed(Input(Encoded(PNG)), tenant="a")
            assert cost.cached == 1
            refused, _ = await kitchen.embed(Input(Encoded(PNG), prompt="query"))
            assert "prompts are for texts" in str(refused)

    asyncio.run(main())


def test_a_fast_decode_is_named_by_all_that_it_served(tiny_bundle: Path) -> None:
    """The reduced size depends on the other regions: a kept answer must be the one that would be computed."""
    large = Encoded(photos.jpeg("chelsea.png", scale=3))
    asked = [Input(large), Input(large, (WHOLE, BOX)), Input(large, (WHOLE, BOX)), Input(large)]

    async def main() -> None:
        models = f"tiny={tiny_bundle}"
        async with (
            _kitchen(models, decode__mode="fast") as kitchen,
            _kitchen(models, cache=0, decode__mode="fast") as bare,
        ):
            got = [await kitchen.embed(item) for item in asked]
            expected = [(await bare.embed(item))[0] for item in asked]
            assert [result for result, _ in got] == expected
            assert [cost.cached for _, cost in got] == [0, 0, 2, 1]
            assert _data(expected[0])[0] != _data(expected[1])[0]

    asyncio.run(main())


def test_nan_is_never_kept(tiny_bundle: Path) -> None:
    black = Input(Pixels((9, 9, 1), bytes(81)))

    async def main() -> None:
        async with _kitchen(f"tiny={tiny_bundle}") as kitchen:
            for _ in range(2):
                got, cost = await kitchen.embed(black, Target(output="broken"))
                assert got.embeddings[0].outcome.reason.name == "NON_FINITE"
                assert cost.cached == 0
            assert kitchen.count("cache_entries") == 0

    asyncio.run(main())


def test_a_caller_that_goes_away_takes_nobody_along(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with _kitchen(f"tiny={tiny_bundle}") as kitchen:
            item = Input(Encoded(photos.jpeg("retina.jpg", quality=60)))
            calls = [asyncio.create_task(kitchen.embed(item)) for _ in range(5)]
            while not kitchen.count("cache_misses_total"):
                await asyncio.sleep(0)
            calls[0].cancel()
            lost, *others = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(lost, asyncio.CancelledError)
            assert len({_data(result)[0] for result, _ in others}) == 1  # type: ignore[misc] # no exceptions
            assert sorted(cost.cached for _, cost in others) == [0, 1, 1, 1]  # type: ignore[misc] # as above
            assert kitchen.count("batch_size_sum") == 1

    asyncio.run(main())


def test_a_hit_does_not_bring_an_idle_model_back(tiny_bundle: Path) -> None:
    async def main() -> None:
        async with _kitchen(f"tiny={tiny_bundle}", model__idle_unload_s=0.05) as kitchen:
            first, _ = await kitchen.embed(Input(Encoded(PNG)))
            engine = kitchen.pipeline.find("tiny")
            async with asyncio.timeout(20):
                while engine.state is not State.UNLOADED:
                    await asyncio.sleep(0.02)
            assert (await kitchen.embed(Input(Encoded(PNG))))[0] == first
            assert engine.state is State.UNLOADED
            assert (await kitchen.embed(Input(Encoded(JPEG))))[1].cached == 0

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_texts_are_kept_with_whether_they_were_cut() -> None:
    async def main() -> None:
        async with _kitchen(CLIP) as kitchen:
            for words, cut in (("a cat", False), ("very " * 200, True)):
                item = Input(Text(words))
                first, cost = await kitchen.embed(item)
                again, then = await kitchen.embed(item)
                assert again == first
                assert again.source.truncated is cut
                assert (cost.cached, then.cached, then.tokens) == (0, 1, 0)
                refused, _ = await kitchen.embed(replace(item, regions=(WHOLE, WHOLE)))
                assert "regions are for images" in str(refused)
                of_image, _ = await kitchen.embed(Input(Encoded(words.encode())))
                assert of_image.reason.name == "UNDECODABLE"

    asyncio.run(main())


@pytest.fixture(scope="module")
def keeping(tiny_bundle: Path) -> Iterator[Server]:
    """A server with room for some vectors of the tiny model."""
    with serve("--model", f"tiny={tiny_bundle}", "--cache-mib", "1") as running:
        yield running


def _counts(server: Server) -> dict[str, float]:
    lookups = (f"cache_{how}_total" for how in ("hits", "joins", "misses"))
    names = ("decodes_total", "batch_size_sum", "cache_entries", *lookups)
    return {name: server.metric(f"pixvec_{name}") for name in names}


def _grown(server: Server, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in _counts(server).items()}


def test_many_who_ask_the_same_are_one_decode_and_one_inference(keeping: Server) -> None:
    before = _counts(keeping)
    stub, request = keeping.stub(), pb.EmbedRequest(input=pb.Input(image=photos.jpeg("retina.jpg")))
    calls = [stub.Embed.future(request, timeout=20) for _ in range(32)]
    answers = [call.result() for call in calls]
    assert len({answer.embedded.SerializeToString() for answer in answers}) == 1
    grown = _grown(keeping, before)
    given = grown.pop("cache_hits_total") + grown.pop("cache_joins_total")
    assert given == sum(answer.report.usage.cached for answer in answers) == 31
    assert set(grown.values()) == {1.0}
    assert sum(answer.report.usage.vectors for answer in answers) == 32
    for metadata, cached in (((), 1), ([("pixvec-tenant", "b")], 0), ([("pixvec-tenant", "b")], 1)):
        answer = stub.Embed(request, timeout=20, metadata=metadata)
        assert answer.report.usage.cached == cached
        assert answer.embedded == answers[0].embedded
    assert _grown(keeping, before)["batch_size_sum"] == 2
    assert keeping.metric("pixvec_cache_bytes") > 0


def test_twins_in_a_batch_and_in_a_comparison_are_computed_once(keeping: Server) -> None:
    before, stub, image = _counts(keeping), keeping.stub(), pb.Input(image=photos.jpeg("coffee.png"))
    answer = stub.EmbedBatch(pb.EmbedBatchRequest(inputs=[image, pb.Input(image=b"bad"), image]))
    one, bad, two = answer.results
    assert one == two
    assert bad.error.reason == pb.REASON_UNDECODABLE
    assert (answer.report.usage.vectors, answer.report.usage.cached) == (2, 1)
    operand = pb.Operand(input=image)
    compared = stub.Similarity(pb.SimilarityRequest(queries=[operand], candidates=[operand]))
    assert np.frombuffer(compared.rows[0].scores, "<f4")[0] == pytest.approx(1)
    assert compared.report.usage.cached == 2
    assert _grown(keeping, before)["batch_size_sum"] == 1


def test_poison_is_not_kept(keeping: Server) -> None:
    before, stub = _counts(keeping), keeping.stub()
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest(input=pb.Input(image=JPEG[: len(JPEG) // 2])))
    grown = _grown(keeping, before)
    assert (grown["cache_misses_total"], grown["cache_entries"], grown["cache_hits_total"]) == (2, 0, 0)


def test_it_stays_within_its_bytes(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}", env={"PIXVEC_CACHE__MAX_BYTES": "4000"}) as server:
        stub = server.stub()
        for i in range(20):
            tensor = pb.Tensor(encoding="ENCODING_UINT8", shape=[1, 1, 1], data=bytes([i]))
            stub.Embed(pb.EmbedRequest(input=pb.Input(pixels=tensor)))
        kept, evicted = (server.metric(f"pixvec_cache_{name}") for name in ("entries", "evictions_total"))
        assert kept + evicted == 20
        assert 0 < kept < 20
        assert 0 < server.metric("pixvec_cache_bytes") <= 4000


def test_the_open_inference_protocol_tells_of_it(keeping: Server, tiny_server: Server) -> None:
    files = [photos.jpeg(name) for name in ("flower.jpg", "china.jpg")]
    with oip.caller(keeping.target) as calls:
        before = calls.ModelStatistics(name="tiny").model_stats[0]
        first = calls.vectors(oip.of_bytes("tiny", files[:1]))
        both = calls.vectors(oip.of_bytes("tiny", files))
        again = calls.vectors(oip.of_bytes("tiny", files))
        assert np.array_equal(both, again)
        assert np.array_equal(first[0], both[0])
        after = calls.ModelStatistics(name="tiny").model_stats[0]
        assert calls.ModelConfig(name="tiny").config.response_cache.enable

    def grown(stage: str) -> int:
        return int(getattr(after.inference_stats, stage).count - getattr(before.inference_stats, stage).count)

    assert after.inference_count - before.inference_count == 2
    assert {s: grown(s) for s in ("success", "queue", "cache_miss", "cache_hit")} == {
        "success": 3,
        "queue": 3,
        "cache_miss": 2,
        "cache_hit": 1,
    }
    assert {grown(stage) for stage in ("compute_input", "compute_infer", "compute_output")} == {2}
    assert after.inference_stats.cache_hit.ns > before.inference_stats.cache_hit.ns
    with oip.caller(tiny_server.target) as calls:
        assert not calls.ModelConfig(name="tiny").config.response_cache.enable


def test_without_one_nothing_is_kept_or_counted(tiny_server: Server) -> None:
    before, stub = _counts(tiny_server), tiny_server.stub()
    for _ in range(2):
        assert stub.Embed(pb.EmbedRequest(input=pb.Input(image=PNG))).report.usage.cached == 0
    grown = _grown(tiny_server, before)
    assert (grown["decodes_total"], grown["batch_size_sum"]) == (2, 2)
    assert not any(value for name, value in grown.items() if name.startswith("cache"))
    with oip.caller(tiny_server.target) as calls:
        done = calls.ModelStatistics(name="tiny").model_stats[0].inference_stats
        assert (done.cache_hit.count, done.cache_miss.count) == (0, 0)
