"""Each source on real pictures: its rows are what the client embeds of the same bytes and boxes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support import photos
from support.servers import Server
from unit.client.archives import write as write_tar

import pixvec
from pixvec import dataset
from pixvec._inputs import ImageLike
from pixvec.dataset._pictures import Box, SourceOptions

Marks: TypeAlias = tuple[tuple[str, Box], ...]
MARKS: Mapping[str, Marks] = {
    "chelsea.png": (("cat", (100, 20, 400, 290)), ("eye", (160, 90, 200, 125))),
    "coffee.png": (("cup", (180, 40, 470, 330)),),
}
SIZES = {"chelsea.png": (451, 300), "coffee.png": (600, 400)}
COLUMNS = ("photo", *map(str, range(10)))


@dataclass
class Written:
    """A source as it was written: the rows that it must come to, by their ids."""

    given: Any
    options: SourceOptions = field(default_factory=SourceOptions)
    images: dict[str, tuple[ImageLike, str | None]] = field(default_factory=dict)
    marks: dict[str, tuple[tuple[str, str, Box], ...]] = field(default_factory=dict)


@cache
def pictures() -> Mapping[str, tuple[bytes, str]]:
    """Return files and their classes: photographs, grey ones among them, and handwritten digits."""
    names = ("chelsea.png", "coffee.png", "china.jpg", "rocket.jpg", "camera.png")
    found = {name: (photos.data(name), "photo") for name in names}
    digits = load_digits()
    for i in range(6):
        drawn = Image.fromarray((digits.images[i] * 15).astype(np.uint8))
        found[f"digit{i}.png"] = photos.encode(drawn, "PNG"), str(digits.target[i])
    return found


def fill(folder: Path) -> Path:
    """Write the pictures into a folder."""
    folder.mkdir(parents=True)
    for name, (data, _) in pictures().items():
        (folder / name).write_bytes(data)
    return folder


def taken(
    names: Callable[[str, str], str], *, classes: bool = True
) -> dict[str, tuple[ImageLike, str | None]]:
    """Return the pictures by the ids that a source gives them."""
    return {
        names(name, label): (data, label if classes else None) for name, (data, label) in pictures().items()
    }


def by_name(name: str, _label: str) -> str:
    return name


def numbered() -> Iterable[tuple[int, str, int, str, Box]]:
    """Yield for each mark the number of its image, its name, the mark's own number, its class and its box."""
    for i, name in enumerate(pictures()):
        for j, (label, box) in enumerate(MARKS.get(name, ())):
            yield i, name, j, label, box


def marked(ids: Callable[[int, int], str], prefix: str = "") -> dict[str, tuple[tuple[str, str, Box], ...]]:
    """Return the marks by image, with the ids that a source gives them."""
    found: dict[str, tuple[tuple[str, str, Box], ...]] = {}
    for i, name, j, label, box in numbered():
        found[prefix + name] = (*found.get(prefix + name, ()), (ids(i, j), label, box))
    return found


def a_folder(root: Path) -> Written:
    for name, (data, label) in pictures().items():
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / name).write_bytes(data)
    return Written(root, images=taken(lambda name, label: f"{label}/{name}"))


def a_csv(root: Path) -> Written:
    fill(root / "files")
    with (root / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["label", "path"])
        rows.writerows((label, f"files/{name}") for name, (_, label) in pictures().items())
    return Written(root / "list.csv", images=taken(lambda name, _: f"files/{name}"))


def an_npy_pair(root: Path) -> Written:
    root.mkdir()
    digits = load_digits()
    flat, labels = digits.data[:12] * 15, digits.target[:12]  # floats of 0..240
    np.save(root / "X.npy", flat)
    np.save(root / "Y.npy", labels)
    images: dict[str, tuple[ImageLike, str | None]] = {
        f"row/{i:06d}": (row.reshape(8, 8, 1).astype(np.uint8), str(label))
        for i, (row, label) in enumerate(zip(flat, labels, strict=True))
    }
    options = SourceOptions(height=8, width=8, channels=1)
    return Written(f"{root}/X.npy,{root}/Y.npy", options, images)


def a_coco(root: Path) -> Written:
    fill(root / "val2014")
    classes = sorted({label for *_, label, _ in numbered()})
    content = {
        "images": [
            {"id": i, "file_name": name}
            | dict(zip(("width", "height"), SIZES.get(name, (0, 0)), strict=True))
            for i, name in enumerate(pictures())
        ],
        "annotations": [
            {
                "id": 100 * i + j,
                "image_id": i,
                "category_id": classes.index(label),
                "bbox": [left, top, right - left, bottom - top],
            }
            for i, _, j, label, (left, top, right, bottom) in numbered()
        ],
        "categories": [{"id": i, "name": label} for i, label in enumerate(classes)],
    }
    file = root / "annotations" / "instances_val2014.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    return Written(file, images=taken(by_name, classes=False), marks=marked(lambda i, j: str(100 * i + j)))


def a_voc(root: Path) -> Written:
    fill(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for name, marks in MARKS.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, (left, top, right, bottom) in marks
        )
        file = (root / "Annotations" / name).with_suffix(".xml")
        file.write_text(f"<annotation>{objects}</annotation>")
    return Written(root, images=taken(by_name, classes=False), marks=marked(lambda _, j: str(j)))


def a_supervisely(root: Path) -> Written:
    fill(root / "ds" / "img")
    (root / "ds" / "ann").mkdir()
    titles = sorted({label for *_, label, _ in numbered()})
    tags = sorted({label for _, label in pictures().values()})
    meta = {
        "classes": [{"title": title, "shape": "rectangle", "color": "#102030"} for title in titles],
        "tags": [{"name": tag, "value_type": "none", "color": "#302010"} for tag in tags],
    }
    (root / "meta.json").write_text(json.dumps(meta))
    for name, (data, label) in pictures().items():
        with Image.open(io.BytesIO(data)) as image:
            size = {"width": image.width, "height": image.height}
        objects = [
            {
                "id": j,
                "classTitle": title,
                "geometryType": "rectangle",
                "points": {"exterior": [[left, top], [right - 1, bottom - 1]], "interior": []},
            }
            for j, (title, (left, top, right, bottom)) in enumerate(MARKS.get(name, ()))
        ]
        annotation = {"size": size, "tags": [{"name": label, "value": None}], "objects": objects}
        (root / "ds" / "ann" / f"{name}.json").write_text(json.dumps(annotation))
    return Written(
        root, images=taken(lambda name, _: f"ds/{name}"), marks=marked(lambda _, j: str(j), prefix="ds/")
    )


def a_tar(root: Path) -> Written:
    root.mkdir()
    members: list[tuple[str, bytes]] = []
    for name, (data, label) in pictures().items():
        members += [(name, data), (f"{name.partition('.')[0]}.cls", label.encode())]
    write_tar(root / "shard-000.tar", members[:8])
    write_tar(root / "shard-001.tar", members[8:])
    shards = dict.fromkeys([name for name, _ in members[:8]], "shard-000.tar")
    images = taken(lambda name, _: f"{shards.get(name, 'shard-001.tar')}!{name}")
    return Written(f"{root}/shard-{{000..001}}.tar", images=images)


def a_parquet(root: Path) -> Written:
    (root / "data").mkdir(parents=True)
    images = [{"bytes": data, "path": name} for name, (data, _) in pictures().items()]
    labels = [COLUMNS.index(label) for _, label in pictures().values()]
    about = {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": {"names": COLUMNS, "_type": "ClassLabel"}}
        }
    }
    table = pa.table({"image": images, "label": labels})
    file = root / "data" / "train-00000-of-00001.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file, row_group_size=3)
    return Written(root, images=taken(lambda name, _: name))


def a_mapping(_root: Path) -> Written:
    images = taken(by_name)
    return Written({name: (data, label) for name, (data, label) in images.items()}, images=images)


@pytest.mark.parametrize(
    "write",
    [a_folder, a_csv, an_npy_pair, a_coco, a_voc, a_supervisely, a_tar, a_parquet, a_mapping],
    ids=lambda write: write.__name__.split("_")[1],
)
def test_a_row_is_what_the_client_embeds_of_the_same_bytes_and_box(
    server: Server, tmp_path: Path, write: Callable[[Path], Written]
) -> None:
    written = write(tmp_path / "source")
    source = dataset.open_source(written.given, written.options)
    assert source.kind == write.__name__.split("_", 1)[1].removesuffix("_pair")
    wanted: dict[tuple[str, str | None], tuple[str | None, Box | None]] = {}
    for name, (_, label) in written.images.items():
        wanted[name, None] = label, None
        wanted |= {(name, key): (title, box) for key, title, box in written.marks.get(name, ())}
    with pixvec.Client(server.target) as client:
        counts = dataset.embed(
            source, tmp_path / "out", client, dataset.EmbedSettings(instances="both", batch_size=4)
        )
        held = dataset.read(tmp_path / "out")
        assert {tuple(row.key): (row.label, row.box) for row in held.rows} == wanted
        assert counts == dataset.Counts(len(wanted), len(wanted), reused=0, removed=0, failed=0, skipped=0)
        for row, vector in zip(held.rows, held.vectors, strict=True):
            region = pixvec.Region(*row.box) if row.box else pixvec.Region(whole=True)
            alone = client.embed_full(written.images[row.id][0], regions=[region])
            assert np.abs(alone.embeddings[0][0].values - vector).max() <= 1e-6, row.key
