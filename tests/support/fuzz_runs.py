"""Runs of hostile inputs: what each of them must end in, and a count of what it ended in."""

from __future__ import annotations

import faulthandler
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import grpc

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import RequestError
from pixvec_server.oip import inference_pb2 as oip
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget
from support.fuzzing import damaged, random_bytes_of
from support.servers import Server

FOUND = Path("build/fuzz")
MAX_SECONDS = 1.0
HANGS_AFTER_S = 30
MAX_LINE_BYTES = 4096
DECODE_REASONS = {"UNDECODABLE", "UNSUPPORTED_FORMAT", "TOO_LARGE"}
DOCUMENTED_REASONS = {*DECODE_REASONS, "BAD_OPTION", "UNKNOWN_FIELD", "MODEL_NOT_FOUND", "SPACE_MISMATCH"}
DOCUMENTED_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
_OURS, _OIP = "/pixvec.v1.EmbeddingService/", "/inference.GRPCInferenceService/"
UNARY: dict[str, Any] = {
    _OURS + "Embed": pb.EmbedRequest,
    _OURS + "EmbedBatch": pb.EmbedBatchRequest,
    _OURS + "Similarity": pb.SimilarityRequest,
    _OURS + "GetModel": pb.GetModelRequest,
    _OIP + "ModelInfer": oip.ModelInferRequest,
    _OIP + "ModelMetadata": oip.ModelMetadataRequest,
}
ANSWERS: dict[str, Any] = {
    _OURS + "EmbedBatch": pb.EmbedBatchResponse,
    _OURS + "EmbedStream": pb.EmbedStreamResponse,
}
STREAMED: dict[str, Any] = {
    _OURS + "EmbedStream": pb.EmbedStreamRequest,
    _OIP + "ModelStreamInfer": oip.ModelInferRequest,
}


@dataclass
class Tally:
    """What happened, and every input that broke a rule."""

    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, outcome: str, seconds: float, data: bytes, *, documented: bool) -> None:
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        if not documented or seconds > MAX_SECONDS:
            FOUND.mkdir(parents=True, exist_ok=True)
            path = FOUND / f"{len(self.broken)}.bin"
            path.write_bytes(data)
            self.broken.append(f"{outcome} after {seconds:.2f} s: {path}")


def decoders() -> list[Decoder]:
    """Return a decoder for each mode, frames setting and color setting."""
    settings = product(("exact", "fast"), ("first", "mean"), ("ignore", "srgb"))
    return [
        Decoder(ImageLimits(), DecodeOptions(mode, frames=frames, color=color), PixelBudget(10**8))  # type: ignore[arg-type]
        for mode, frames, color in settings
    ]


def fuzz_decoder(count: int, seed: int, on_progress: Callable[[int], None] = lambda _done: None) -> Tally:
    """Decode damaged pictures, each within HANGS_AFTER_S or the process ends with its stack."""
    rng, tally, choices = random.Random(seed), Tally(), decoders()
    for i in range(count):
        data, decoder = damaged(rng), choices[i % len(choices)]
        faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
        started = time.perf_counter()
        try:
            with ExitStack() as held:
                outcome = decoder.decode(data, held, 224).format
            documented = True
        except RequestError as exc:
            outcome = exc.reason.name
            documented = outcome in DECODE_REASONS and len(exc.message) < MAX_LINE_BYTES
        except Exception as exc:  # noqa: BLE001 - this is what is looked for
            outcome, documented = repr(exc), False
        tally.add(outcome, time.perf_counter() - started, data, documented=documented)
        on_progress(i + 1)
    faulthandler.cancel_dump_traceback_later()
    return tally


def fuzz_server(
    server: Server, count: int, seed: int, on_progress: Callable[[int], None] = lambda _done: None
) -> Tally:
    """Send random messages to every method, one call at a time."""
    rng, tally, channel = random.Random(seed), Tally(), server.channel()
    for i in range(count):
        streamed = i % 5 == 4
        method, kind = rng.choice(list((STREAMED if streamed else UNARY).items()))
        data = random_bytes_of(rng, kind)
        started = time.perf_counter()
        outcome = send(channel, method, data, streamed=streamed)
        seconds = time.perf_counter() - started
        tally.add(
            f"{method.rpartition('/')[2]} {outcome}", seconds, data, documented=outcome in DOCUMENTED_CODES
        )
        on_progress(i + 1)
    return tally


def send(channel: grpc.Channel, method: str, data: bytes, *, streamed: bool) -> str:
    """Return the status of one call; of one that is OK, also the worst reason among its results."""
    try:
        if streamed:
            answers = list(channel.stream_stream(method)(iter([data]), timeout=HANGS_AFTER_S))
        else:
            answers = [channel.unary_unary(method)(data, timeout=HANGS_AFTER_S)]
    except grpc.RpcError as exc:
        return str(exc.code().name)
    kind = ANSWERS.get(method)
    reasons = {
        reason
        for answer in answers
        if kind is not None
        for result in kind.FromString(answer).results
        for reason in reasons_of(result)
    }
    return " ".join(sorted(reasons - DOCUMENTED_REASONS)) or "OK"


def reasons_of(result: pb.Result) -> Iterator[str]:
    """Yield the reasons of a result's errors, without their prefix."""
    errors = [result.error] if result.HasField("error") else []
    errors += [each.error for each in result.embedded.embeddings if each.HasField("error")]
    for error in errors:
        yield pb.Reason.Name(error.reason).removeprefix("REASON_")
