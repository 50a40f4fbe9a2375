"""What `pixvec-server tune` chooses of figures, keeps in its file, and when `serve` obeys it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs
from support import photos
from typer.testing import CliRunner

from pixvec_server import bundle, cli, provision, tune, tuned
from pixvec_server.app import engine_options
from pixvec_server.config import Config
from pixvec_server.errors import BackendError, ConfigError
from pixvec_server.preprocess.samples import Sample
from pixvec_server.tuned import Entry, Fidelity, Goal, Machine, Setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pixvec_server.backends.base import Batch
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32

GOALS: tuple[Goal, ...] = get_args(Goal)


def _setting(
    backend: Any = "openvino",
    precision: Any = "fp32",
    shape: tuple[int, int] = (1, 8),
    *,
    ms: float = 10.0,
    rate: float = 100.0,
    nearest: float = 1.0,
    overlap: float = 1.0,
    cosine: float = 1.0,
) -> Setting:
    found = Fidelity(
        count=54, cosine_mean=1.0, cosine_min=cosine, overlap_at_10=overlap, same_nearest=nearest
    )
    return Setting(
        backend=backend,
        precision=precision,
        instances=shape[0],
        max_batch=shape[1],
        threads=2,
        latency_ms=ms,
        images_per_s=rate,
        fidelity=found,
        faithful=tune.BAR.kept(found),
    )


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("fault", [{"overlap": 0.989}, {"nearest": 0.979}, {"cosine": 0.994}])
def test_nothing_below_the_bar_is_ever_chosen(goal: Goal, fault: dict[str, Any]) -> None:
    plain = _setting()
    below = [
        _setting(kind, p, ms=1, rate=999, **fault) for kind in ("torch", "onnx") for p in ("bf16", "fp32")
    ]
    assert tune.for_auto([*below, plain], goal, "fp32", given=1000) == plain
    with pytest.raises(BackendError, match="no engine keeps"):
        tune.for_auto(below, goal, "fp32", given=1000)


@pytest.mark.parametrize(
    ("given", "overlap", "taken"),
    [(0, 1.0, "fp32"), (53, 1.0, "fp32"), (54, 1.0, "bf16"), (54, 0.992, "fp32")],
)
def test_a_lower_precision_must_be_well_over_the_bar_on_the_operators_own_pictures(
    given: int, overlap: float, taken: str
) -> None:
    faster = _setting(precision="bf16", ms=5, rate=200, overlap=overlap)
    assert faster.faithful
    assert tune.for_auto([_setting(), faster], "balanced", "fp32", given=given).precision == taken


def test_each_goal_weighs_a_lone_image_against_many() -> None:
    quick = _setting("onnx", ms=10, rate=100)
    within = _setting("openvino", ms=12.4, rate=130)
    slow = _setting("torch", ms=12.6, rate=200)
    chosen = {goal: tune.best([slow, within, quick], goal) for goal in GOALS}
    assert chosen == {"latency": quick, "balanced": within, "throughput": slow}


def test_a_difference_of_noise_goes_to_fewer_and_smaller_batches() -> None:
    small, large, two = (_setting(shape=s, rate=r) for s, r in (((1, 4), 98), ((1, 16), 100), ((2, 8), 100)))
    assert tune.best([two, large, small], "throughput") == small
    assert tune.best([two, large, _setting(shape=(1, 4), rate=96)], "throughput") == large


def test_the_best_of_each_engine_and_precision_is_kept_the_best_first() -> None:
    measured = [
        _setting("onnx", rate=90),
        _setting("openvino", shape=(1, 4), rate=100),
        _setting("openvino", shape=(1, 16), rate=120),
        _setting("openvino", "bf16", rate=200, overlap=0.9),
    ]
    assert list(tune.ranked(measured, "throughput")) == [measured[3], measured[2], measured[0]]


def _entry(here: Machine, *settings: Setting, auto: Setting | None = None) -> Entry:
    return Entry(
        machine=here,
        versions=tuned.versions(),
        when="2026-11-22T12:00:00+00:00",
        goal="balanced",
        given=0,
        seeded=54,
        spread=1.0,
        auto=auto or settings[0],
        settings=settings,
    )


@pytest.fixture
def made(tiny_bundle: Path) -> Bundle:
    return bundle.load(tiny_bundle)


@pytest.fixture
def file(made: Bundle, tmp_path: Path) -> Path:
    return tuned.path(tmp_path, made.manifest)


HERE = tuned.machine("cpu")
SETTINGS = (
    _setting("onnx", shape=(2, 16)),
    _setting("openvino", shape=(1, 4)),
    _setting("openvino", "bf16", (2, 4), overlap=0.9),
)


def _placed(made: Bundle, cache: Path, **section: Any) -> tuple[Any, list[Any]]:
    config = Config(model={"device": "cpu", **section})
    with capture_logs() as logs:
        return tuned.place(config, made, cache), logs


def test_auto_runs_as_tuned_and_says_so(made: Bundle, file: Path, tmp_path: Path) -> None:
    tuned.write(file, "tiny", _entry(HERE, *SETTINGS))
    place, logs = _placed(made, tmp_path)
    assert (place.kind, place.instances, place.max_batch) == ("onnx", 2, 16)
    assert "tuned here on 2026-11-22 for balanced: onnx fp32, 2 batches of 16 in flight" in place.why
    options = engine_options(Config(), place)
    assert (options.instances, options.max_batch) == (2, 16)
    assert not logs


def test_what_is_configured_wins(made: Bundle, file: Path, tmp_path: Path) -> None:
    tuned.write(file, "tiny", _entry(HERE, *SETTINGS))
    place, _ = _placed(made, tmp_path, backend="openvino")
    assert (place.kind, place.precision, place.max_batch) == ("openvino", "fp32", 4)
    place, _ = _placed(made, tmp_path, precision="fp32")
    assert place.kind == "onnx"
    config = Config.model_validate({"batch": {"instances": 3, "max_size": 5}, "model": {"device": "cpu"}})
    place = tuned.place(config, made, tmp_path)
    assert "batch.instances, batch.max_size as configured" in place.why
    options = engine_options(config, place)
    assert (options.instances, options.max_batch) == (3, 5)


def test_below_the_bar_is_served_by_name_only() -> None:
    worse = _setting("onnx", overlap=0.9)
    entry = _entry(HERE, worse, *SETTINGS[1:], auto=SETTINGS[1])
    assert tuned.wanted(entry, "auto", "auto", "fp32").backend == "openvino"
    assert tuned.wanted(entry, "auto", "fp32", "fp32").backend == "openvino"
    assert tuned.wanted(entry, "onnx", "auto", "fp32") == worse
    assert tuned.wanted(entry, "auto", "bf16", "fp32") == SETTINGS[2]
    with pytest.raises(ConfigError, match="torch in fp32 was not measured"):
        tuned.wanted(entry, "torch", "auto", "fp32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": HERE.model_copy(update={"processors": 999})}, "tuned on 999 x .*this is"),
        ({"versions": {**tuned.versions(), "onnxruntime": "0.1"}}, "onnxruntime 0.1, now"),
        ({"versions": {**tuned.versions(), "tensorflow": "2"}}, "tensorflow 2, now absent"),
    ],
)
def test_another_machine_or_version_is_ignored_with_one_line(
    made: Bundle, file: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    tuned.write(file, "tiny", _entry(HERE, *SETTINGS).model_copy(update=change))
    _ignored(made, tmp_path, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Invalid JSON"),
        ('{"format": 2, "model": "tiny"}', "format: Input should be 1"),
        ('{"format": 1, "model": "tiny", "entries": [{}]}', "entries.0.machine: Field required"),
    ],
)
def test_a_corrupt_file_is_ignored_with_one_line(
    made: Bundle, file: Path, tmp_path: Path, text: str, words: str
) -> None:
    file.parent.mkdir()
    file.write_text(text)
    _ignored(made, tmp_path, words)
    tuned.write(file, "tiny", _entry(HERE, *SETTINGS))
    assert _placed(made, tmp_path)[0].max_batch == 16


@pytest.mark.parametrize(
    ("section", "words"),
    [({"threads": 1}, "tuned with 2 threads"), ({"cuda_graph": True}, "without model.cuda")],
)
def test_settings_that_change_what_was_measured_end_the_tuning(
    made: Bundle, file: Path, tmp_path: Path, section: dict[str, Any], words: str
) -> None:
    tuned.write(file, "tiny", _entry(HERE, *SETTINGS))
    _ignored(made, tmp_path, words, **section)


def _ignored(made: Bundle, cache: Path, words: str, **section: Any) -> None:
    place, logs = _placed(made, cache, **section)
    assert (place.instances, place.max_batch) == (0, 0)
    assert "openvino > onnx > torch" in place.why
    [line] = logs
    assert line["event"] == "tuned settings are ignored"
    assert line["mend"] == "pixvec-server tune tiny"
    assert re.search(words, line["because"]), line["because"]


def test_a_file_keeps_one_entry_for_each_machine(file: Path) -> None:
    other = HERE.model_copy(update={"cpu": "another"})
    for here, shape in ((HERE, (1, 4)), (other, (1, 8)), (HERE, (1, 16))):
        tuned.write(file, "tiny", _entry(here, _setting(shape=shape)))
    found = {entry.machine.cpu: entry.auto.max_batch for entry in tuned.read(file).entries}
    assert found == {"another": 8, HERE.cpu: 16}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_to_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "tuned").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        tuned.write(tmp_path / "tuned" / "x.json", "tiny", _entry(HERE, *SETTINGS))


class _Fake:
    """An engine whose vectors are the pixels, rounded where its precision is bf16; onnx does not load."""

    def __init__(self, _bundle: Bundle, placement: Any, _options: Any) -> None:
        if placement.kind == "onnx":
            raise RuntimeError("out of memory")
        self._step = 64 if placement.precision == "bf16" else 1

    def run(self, _tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        rows = batch.reshape(len(batch), -1).astype(np.float32)
        return dict.fromkeys(outputs, np.floor(rows / self._step))

    def close(self) -> None:
        pass


def _noise(count: int) -> list[bytes]:
    rng = np.random.default_rng(3)
    pictures = (Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(count))
    return [photos.encode(picture, "PNG") for picture in pictures]


def test_emulated_bf16_is_not_measured(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's emulation takes seconds for one batch."""
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setenv("PIXVEC_TEST_CPU", "baseline")
    spec = provision.parse("efficientnet_lite0").spec
    buildable = bundle.Bundle(made.folder, made.manifest.model_copy(update={"spec": spec}))
    assert tune._obstacle(buildable, "torch", "bf16", "cpu") == (
        "bf16 is emulated on this processor: slower than fp32"
    )
    assert "has no bf16 arithmetic" in tune._obstacle(buildable, "openvino", "bf16", "cpu")
    assert tune._obstacle(buildable, "torch", "fp32", "cpu") == ""


def test_a_way_that_fails_is_left_out_and_so_is_a_picture(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(tune, "factory", lambda _kind: _Fake)
    monkeypatch.setattr(tune, "_obstacle", lambda _made, kind, p, _device: "" if p != "fp16" else kind)
    images = [tmp_path / f"{i}.png" for i in range(56)]
    files = _noise(54)
    for image, data in zip(images, [*files, files[0], b"no image"], strict=True):
        image.write_bytes(data)
    report = tune.tune(made, images, device="cpu", effort=tune.Effort(0.01, 1))
    assert report.entry.given == 54
    assert report.entry.seeded == 0
    assert list(report.failed) == [str(images[55])]
    assert report.skipped["onnx fp32, 1 in flight"] == "out of memory"
    assert {s.backend for s in report.measured} == {"openvino", "torch"}
    assert {s.faithful for s in report.measured if s.precision == "bf16"} == {False}
    assert report.entry.auto.precision == "fp32"
    assert all(s.latency_ms > 0 and s.images_per_s > 0 for s in report.measured)


def test_fewer_than_54_pictures_are_joined_by_seeded_ones(
    made: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "factory", lambda _kind: _Fake)
    monkeypatch.setattr(
        tune, "_obstacle", lambda _made, kind, _p, _device: "" if kind == "openvino" else kind
    )
    monkeypatch.setattr(tune, "samples", lambda: [Sample("", data) for data in _noise(54)[:24]])
    monkeypatch.setattr(
        tune, "small_samples", lambda count: [Sample("", data) for data in _noise(54)[-count:]]
    )
    entry = tune.tune(made, [], device="cpu", effort=tune.Effort(0.01, 1)).entry
    assert (entry.given, entry.seeded) == (0, 54)
    assert entry.auto.fidelity.count == 54


@pytest.mark.parametrize(("spread", "force", "code"), [(1.4, (), 0), (1.6, (), 3), (9, ("--force",), 0)])
def test_figures_of_a_disturbed_machine_are_not_kept(
    made: Bundle,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    spread: float,
    force: tuple[str, ...],
    code: int,
) -> None:
    entry = _entry(HERE, *SETTINGS).model_copy(update={"spread": spread})
    report = tune.Report(entry, SETTINGS, {}, {})
    monkeypatch.setattr(tune, "tune", lambda *_, **__: report)
    monkeypatch.setenv("PIXVEC_CACHE", str(file.parent.parent))
    done = CliRunner().invoke(cli.app, ["tune", f"tiny={made.folder}", "--json", *force])
    assert done.exit_code == code, done.output
    assert file.exists() == (code == 0)


def test_the_spread_is_the_best_round_over_the_worst() -> None:
    figures: dict[tune.Way, Any] = {
        ("onnx", "fp32", 1): tune._Figures([10.0, 9.0], {4: [10.0, 20.0], 8: [10.0, 30.0]})
    }
    assert tune._spread(figures) == 2.5
    [four, eight] = tune._settings(figures, {("onnx", "fp32"): SETTINGS[0].fidelity})
    assert (four.latency_ms, four.images_per_s, eight.images_per_s) == (9.0, 20.0, 30.0)
