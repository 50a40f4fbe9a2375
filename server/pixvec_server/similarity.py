"""Scores of queries against candidates, each an input or a vector, in one space."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pixvec_server import vectors
from pixvec_server.errors import BadOptionError, RequestError, SpaceMismatchError, TooLargeError
from pixvec_server.types import F32, Answer, Cost, Encoding, Input, Metric, Result, Target, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pixvec_server.forms import Form
    from pixvec_server.pipeline import Pipeline


_BLOCK = 1024  # operands that are held as numbers at one time
P = ParamSpec("P")
R = TypeVar("R")
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


class Comparer:
    """Answers Similarity calls: inputs go through the pipeline, the scoring runs on a thread of its own."""

    def __init__(self, pipeline: Pipeline, *, max_cells: int) -> None:
        self._pipeline = pipeline
        self._max_cells = max_cells
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="similarity")

    async def compare(
        self, question: Question, *, deadline: float, tenant: str = ""
    ) -> tuple[list[Row], Answer]:
        """Answer one call. Raises RequestError that names the operand at fault (`candidates[3]`)."""
        _check(question, self._max_cells)
        plan = self._pipeline.plan_one(question.target)
        form = plan.forms[0]
        if len(form.shape) != 1:
            raise BadOptionError(f"{form.output} is a map: compare vectors", field="target.output")
        named = await self.run(_named, question, form)
        inputs = {name: operand.content for name, operand in named if isinstance(operand.content, Input)}
        answer = Answer([], (form.origin,), Cost())
        if inputs:
            answer = await self._pipeline.embed(list(inputs.values()), plan, deadline=deadline, tenant=tenant)
        made = dict(zip(inputs, answer.results, strict=True))
        return await self.run(_score, named, made, question), answer

    async def run(self, function: Callable[P, R], *words: P.args, **_: P.kwargs) -> R:
        """Run on the thread what would hold the event loop up: a call may have 400,000 operands."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *words)

    def close(self) -> None:
        """Let the thread end when it is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _score(named: Sequence[tuple[str, Operand]], made: Mapping[str, Result], question: Question) -> list[Row]:
    """Score in blocks: a vector may be 32 times larger as numbers than on the wire."""
    split = len(question.queries)
    rows: list[Row] = []
    for queries in _blocks(named[:split], made):
        parts = [scores(queries, block, question.metric) for block in _blocks(named[split:], made)]
        rows += [_row(line, question) for line in np.concatenate(parts, axis=1)]
    return rows


def _blocks(named: Sequence[tuple[str, Operand]], made: Mapping[str, Result]) -> Iterator[F32]:
    for at in range(0, len(named), _BLOCK):
        yield np.stack(
            [
                _embedded(name, made[name]) if name in made else _given(name, operand)
                for name, operand in named[at : at + _BLOCK]
            ]
        )


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


def _named(question: Question, form: Form) -> list[tuple[str, Operand]]:
    """Name every operand, and refuse those that cannot be compared."""
    named = [(f"queries[{i}]", operand) for i, operand in enumerate(question.queries)]
    named += [(f"candidates[{i}]", operand) for i, operand in enumerate(question.candidates)]
    for name, operand in named:
        _check_operand(name, operand, form)
    return named


def _check_operand(name: str, operand: Operand, form: Form) -> None:
    """Refuse from the header alone; the numbers are read later, on another thread."""
    content = operand.content
    if isinstance(content, Input):
        if len(content.regions) > 1:
            words = f"{len(content.regions)} regions: an operand has at most one"
            raise BadOptionError(words, field=f"{name}.input.regions")
        return
    if not operand.space:
        raise BadOptionError("a vector must name its space: send the Origin's", field=f"{name}.space")
    if operand.space != form.origin.space:
        words = f"the vector is in space {operand.space}, the target in {form.origin.space}"
        raise SpaceMismatchError(words, field=f"{name}.space")
    if content.shape != form.shape:
        words = f"the vector has shape {list(content.shape)}, the target {list(form.shape)}"
        raise BadOptionError(words, field=f"{name}.vector.shape")


def _given(name: str, operand: Operand) -> F32:
    assert isinstance(operand.content, Vector)
    try:
        return vectors.decode(operand.content)
    except RequestError as exc:
        raise exc.under(f"{name}.vector") from exc


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
