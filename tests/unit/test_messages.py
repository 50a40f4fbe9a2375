"""Reading messages: whatever is not known is refused, wherever it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import BadOptionError, OverloadedError, Reason, RequestError, UnknownFieldError
from pixvec_server.rpc import messages, status
from pixvec_server.types import WHOLE, Encoding, Region, Target

if TYPE_CHECKING:
    from google.protobuf.message import Message

UNKNOWN = b"\x98\x06\x01"  # field 99, a varint


def _with_unknown(message: Message) -> bytes:
    return message.SerializeToString() + UNKNOWN


def test_an_empty_target_is_every_default() -> None:
    assert messages.read_targets([], 8) == (Target(),)
    assert messages.read_target(pb.Target()) == Target()


def test_presence_is_kept() -> None:
    target = messages.read_target(pb.Target(dimensions=0, normalize=False))
    assert (target.dimensions, target.normalize) == (0, False)


def test_an_input_without_regions_is_the_whole_image() -> None:
    assert messages.read_input(pb.Input(image=b"x"), 4).regions == (WHOLE,)
    boxed = pb.Input(image=b"x", regions=[pb.Region(left=-1, right=5, bottom=6)])
    assert messages.read_input(boxed, 4).regions == (Region(-1, 0, 5, 6),)


@pytest.mark.parametrize(
    "message",
    [
        pb.Input.FromString(_with_unknown(pb.Input(image=b"x"))),
        pb.Input(image=b"x", regions=[pb.Region.FromString(_with_unknown(pb.Region(whole=True)))]),
        pb.Input(pixels=pb.Tensor.FromString(_with_unknown(pb.Tensor(encoding="ENCODING_UINT8")))),
        pb.Input(pixels=pb.Tensor(encoding=99)),  # type: ignore[arg-type] # what a newer client may send
    ],
)
def test_an_unknown_field_or_value_of_an_input_is_refused(message: pb.Input) -> None:
    with pytest.raises(UnknownFieldError, match="not know"):
        messages.read_input(message, 4)


@pytest.mark.parametrize(
    "message",
    [pb.Target.FromString(UNKNOWN), pb.Target(encoding=7)],  # type: ignore[arg-type] # as above
)
def test_an_unknown_field_or_value_of_a_target_is_refused_under_its_index(message: pb.Target) -> None:
    with pytest.raises(UnknownFieldError) as caught:
        messages.read_targets([pb.Target(), message], 8)
    assert caught.value.field.startswith("targets[1]")


@pytest.mark.parametrize(
    "request_",
    [
        pb.SimilarityRequest(metric=9),  # type: ignore[arg-type] # as above
        pb.SimilarityRequest(queries=[pb.Operand.FromString(UNKNOWN)]),
        pb.SimilarityRequest(candidates=[pb.Operand(vector=pb.Tensor(encoding=42))]),  # type: ignore[arg-type]
        pb.SimilarityRequest(target=pb.Target.FromString(UNKNOWN)),
    ],
)
def test_an_unknown_field_or_value_of_a_similarity_is_refused(request_: pb.SimilarityRequest) -> None:
    with pytest.raises(UnknownFieldError):
        messages.read_question(request_)


def test_too_many_of_anything_names_the_limit() -> None:
    with pytest.raises(RequestError, match="regions = 2"):
        messages.read_input(pb.Input(image=b"x", regions=[pb.Region(whole=True)] * 3), 2)
    with pytest.raises(RequestError, match="targets = 2"):
        messages.read_targets([pb.Target()] * 3, 2)


def test_whole_with_edges_is_refused() -> None:
    with pytest.raises(BadOptionError, match="one or the other"):
        messages.read_input(pb.Input(image=b"x", regions=[pb.Region(whole=True, right=4)]), 2)


@pytest.mark.parametrize("encoding", [e for e in Encoding if e is not Encoding.UINT8])
def test_pixels_of_another_encoding_say_how_to_map_them(encoding: Encoding) -> None:
    name = pb.Encoding.Name(encoding.value)
    with pytest.raises(BadOptionError, match=r"round\(255 x\)"):
        messages.read_input(pb.Input(pixels=pb.Tensor(encoding=name)), 1)


def test_an_error_names_field_and_hint_and_keeps_to_its_length() -> None:
    written = messages.write_error(OverloadedError("full" * 1000, field="inputs", retry_after=1.5))
    assert pb.Reason.Name(written.reason) == "REASON_OVERLOADED"
    assert written.message.startswith("inputs: full")
    assert 100 < len(written.message.encode()) <= 1024
    assert (written.retry_after.seconds, written.retry_after.nanos) == (1, 500_000_000)
    assert not messages.write_error(BadOptionError("x")).HasField("retry_after")


def test_every_reason_of_the_contract_has_a_class_and_a_code() -> None:
    classes = {cls.reason: cls for cls in _leaves(RequestError) if hasattr(cls, "reason")}
    assert {reason.name for reason in classes} == {
        name.removeprefix("REASON_") for name, number in pb.Reason.items() if number
    }
    for reason in Reason:
        assert pb.Reason.Value(f"REASON_{reason.name}") == reason.value
        assert status.code_of(classes[reason]("x"))


def _leaves(cls: type[RequestError]) -> set[type[RequestError]]:
    below = set(cls.__subclasses__())
    return below.union(*(_leaves(kind) for kind in below)) if below else set()
