"""Scores of queries against candidates, each an input or a vector, in one space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pixvec_server import vectors
from pixvec_server.errors import BadOptionError, RequestError, SpaceMismatchError, TooLargeError
from pixvec_server.types import F32, Answer, Cost, Encoding, Input, Metric, Result, Target, Vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixvec_server.engine import Form
    from pixvec_server.pipeline import Pipeline


F64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a comparison; a vector names its space."""

    content: Input | Vector
    space: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A query's scores: of `indices`, nearest first, or of every candidate in order when there are none."""

    indices: tuple[int, ...]
    scores: F32


@dataclass(frozen=True, slots=True)
class Question:
    """One Similarity call."""

    queries: Sequence[Operand]
    candidates: Sequence[Operand]
    target: Target
    metric: Metric
    top_k: int | None


async def compare(
    pipeline: Pipeline, question: Question, *, max_cells: int, deadline: float
) -> tuple[list[Row], Answer]:
    """Answer a Similarity call. Raises RequestError that names the operand at fault (`candidates[3]`)."""
    _check(question, max_cells)
    plan = pipeline.plan([question.target])
    form = plan.forms[0]
    named = [(f"queries[{i}]", operand) for i, operand in enumerate(question.queries)]
    named += [(f"candidates[{i}]", operand) for i, operand in enumerate(question.candidates)]
    given = {
        name: _given(name, operand, form) for name, operand in named if isinstance(operand.content, Vector)
    }
    inputs = {
        name: _single(name, operand.content) for name, operand in named if isinstance(operand.content, Input)
    }
    answer = Answer([], (form.origin,), Cost())
    if inputs:
        answer = await pipeline.embed(list(inputs.values()), plan, deadline=deadline)
        given |= {name: _embedded(name, result) for name, result in zip(inputs, answer.results, strict=True)}
    rows = np.stack([given[name] for name, _ in named])
    split = len(question.queries)
    table = scores(rows[:split], rows[split:], question.metric)
    return [_row(line, question) for line in table], answer


def scores(queries: F32, candidates: F32, metric: Metric) -> F32:
    """Return (q, c) float32 from (q, d) and (c, d): cosine, inner product or Euclidean distance.

    The cosine with a zero vector is 0.
    """
    wide_q, wide_c = queries.astype(np.float64), candidates.astype(np.float64)
    if metric is Metric.COSINE:
        wide_q, wide_c = _unit_rows(wide_q), _unit_rows(wide_c)
    if metric is not Metric.EUCLIDEAN:
        return np.asarray(wide_q @ wide_c.T, np.float32)
    squares = (wide_q**2).sum(1)[:, None] + (wide_c**2).sum(1)[None, :] - 2 * (wide_q @ wide_c.T)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)), np.float32)


def _unit_rows(rows: F64) -> F64:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1.0, lengths)


def _check(question: Question, max_cells: int) -> None:
    for name in ("queries", "candidates"):
        if not getattr(question, name):
            raise BadOptionError(f"{name} is empty: give at least one", field=name)
    cells = len(question.queries) * len(question.candidates)
    if cells > max_cells:
        raise TooLargeError(f"{cells} cells are over similarity_cells = {max_cells}", field="candidates")
    if question.top_k == 0:
        raise BadOptionError(
            "top_k = 0: ask for at least 1, or leave it unset for every score", field="top_k"
        )
    if question.target.encoding is not Encoding.FLOAT32:
        raise BadOptionError("scores are computed in float32: unset target.encoding", field="target.encoding")


def _given(name: str, operand: Operand, form: Form) -> F32:
    assert isinstance(operand.content, Vector)
    if not operand.space:
        raise BadOptionError("a vector must name its space: send the Origin's", field=f"{name}.space")
    if operand.space != form.origin.space:
        raise SpaceMismatchError(
            f"the vector is in space {operand.space}, the target in {form.origin.space}",
            field=f"{name}.space",
        )
    try:
        values = vectors.decode(operand.content)
    except RequestError as exc:
        raise exc.under(f"{name}.vector") from exc
    if values.shape != form.shape:
        raise BadOptionError(
            f"the vector has size {values.size}, the target {list(form.shape)}", field=f"{name}.vector"
        )
    return values


def _single(name: str, item: Input) -> Input:
    if len(item.regions) > 1:
        raise BadOptionError(
            f"{len(item.regions)} regions: an operand has at most one", field=f"{name}.input.regions"
        )
    return item


def _embedded(name: str, result: Result) -> F32:
    outcome = result if isinstance(result, RequestError) else result.embeddings[0].outcome
    if isinstance(outcome, RequestError):
        raise outcome.under(f"{name}.input") from outcome
    assert isinstance(outcome, Vector)
    return vectors.decode(outcome)


def _row(line: F32, question: Question) -> Row:
    if question.top_k is None:
        return Row((), line)
    nearest_first = line if question.metric is Metric.EUCLIDEAN else -line
    order = np.argsort(nearest_first, kind="stable")[: question.top_k]
    return Row(tuple(int(i) for i in order), line[order])
