"""A folder of photographs, searched by an image, with the vectors in LanceDB.

python examples/search_lancedb.py localhost:50051 photos/ cat.jpg --store pictures.lancedb

Beside each vector stands its origin. Vectors of two spaces are never mixed: a store that holds another space
is refused before anything is embedded, and every call after that is pinned to the space that was agreed on.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
import pyarrow as pa

import pixvec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

NEAREST = 5
AT_ONCE = 1000  # rows: each write makes a version of the table, so a few large ones


def main(target: str, folder: Path, query: Path, store: Path = Path("pictures.lancedb")) -> None:
    with pixvec.Client(target) as client:
        output = client.model().output()
        if output is None:
            raise SystemExit(f"the default model of {target} makes no embedding")
        table = prepare(store, output)
        add(table, rows(client, folder, output.space))
        for path, score in nearest(table, client.embed(query, space=output.space)):
            print(f"{score:.3f}  {path}")


def prepare(store: Path, output: pixvec.OutputInfo) -> lancedb.Table:
    """Open the table, in a new store make it; refuse vectors that cannot be compared with the server's."""
    db = lancedb.connect(store)
    if "pictures" not in db.list_tables().tables:
        words = [pa.field(name, pa.string()) for name in ("path", "model", "space", "build")]
        vector = pa.field("vector", pa.list_(pa.float32(), output.shape[0]))
        return db.create_table("pictures", schema=pa.schema([*words, vector]))
    table = db.open_table("pictures")
    other = table.search().where(f"space <> '{output.space}'").select(["space"]).limit(1).to_list()
    if other:
        raise SystemExit(
            f"this store holds vectors of space {other[0]['space']}, the server makes {output.space}"
        )
    return table


def rows(client: pixvec.Client, folder: Path, space: str) -> Iterator[dict[str, Any]]:
    """Yield each picture's path, vector and origin, in requests that the client cuts; say which have none."""
    paths = sorted(path.resolve() for path in folder.iterdir() if path.is_file())
    answers = client.embed_iter_full(paths, targets=[pixvec.Target(space=space)])
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, pixvec.PixvecError):
            print(f"left out: {path}: {answer.message}")
            continue
        origin = answer.origin
        yield {
            "path": str(path),
            "vector": answer.vector,
            "model": origin.model,
            "space": origin.space,
            "build": origin.build,
        }


def add(table: lancedb.Table, pictures: Iterator[dict[str, Any]]) -> None:
    """Store the rows; a picture that was there is replaced."""
    while some := list(islice(pictures, AT_ONCE)):
        table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(some)


def nearest(table: lancedb.Table, vector: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Return the paths and cosines of the pictures most like the vector, nearest first."""
    found = (
        table.search(vector).distance_type("cosine").select(["path", "_distance"]).limit(NEAREST).to_list()
    )
    return [(row["path"], 1 - row["_distance"]) for row in found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", help="address of a pixvec server, HOST:PORT")
    parser.add_argument("folder", type=Path, help="the pictures to search in")
    parser.add_argument("query", type=Path, help="the picture to search by")
    parser.add_argument(
        "--store", type=Path, default=Path("pictures.lancedb"), help="where the vectors are kept"
    )
    main(**vars(parser.parse_args()))
