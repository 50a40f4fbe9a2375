"""A folder of photographs, searched by an image, with the vectors in DuckDB.

python examples/search_duckdb.py localhost:50051 photos/ cat.jpg --store pictures.duckdb

Beside each vector stands its origin. Vectors of two spaces are never mixed: a store that holds another space
is refused before anything is embedded, and every call after that is pinned to the space that was agreed on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

import pixvec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

NEAREST = 5


def main(target: str, folder: Path, query: Path, store: Path = Path("pictures.duckdb")) -> None:
    with pixvec.Client(target) as client, duckdb.connect(store) as db:
        output = client.model().output()
        if output is None:
            raise SystemExit(f"the default model of {target} makes no embedding")
        prepare(db, output)
        add(db, embedded(client, folder, output.space))
        for path, score in nearest(db, client.embed(query, space=output.space)):
            print(f"{score:.3f}  {path}")


def prepare(db: duckdb.DuckDBPyConnection, output: pixvec.OutputInfo) -> None:
    """Make the table in a new store; refuse a store whose vectors cannot be compared with the server's."""
    db.execute(f"""
        CREATE TABLE IF NOT EXISTS pictures (
            path VARCHAR PRIMARY KEY, vector FLOAT[{output.shape[0]}],
            model VARCHAR, space VARCHAR, build VARCHAR
        )""")
    other = db.execute("SELECT space FROM pictures WHERE space <> ? LIMIT 1", [output.space]).fetchone()
    if other:
        raise SystemExit(f"this store holds vectors of space {other[0]}, the server makes {output.space}")


def embedded(client: pixvec.Client, folder: Path, space: str) -> Iterator[tuple[str, pixvec.Embedded]]:
    """Yield each picture's path and answer, in requests that the client cuts; say which have no answer."""
    paths = sorted(path.resolve() for path in folder.iterdir() if path.is_file())
    answers = client.embed_iter_full(paths, targets=[pixvec.Target(space=space)])
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, pixvec.PixvecError):
            print(f"left out: {path}: {answer.message}")
        else:
            yield str(path), answer


def add(db: duckdb.DuckDBPyConnection, pictures: Iterator[tuple[str, pixvec.Embedded]]) -> None:
    """Store each vector and its origin; a picture that was there is replaced."""
    db.begin()  # one transaction: all or, should the server go away, nothing
    for path, answer in pictures:
        origin = answer.origin
        row = [path, answer.vector, origin.model, origin.space, origin.build]
        db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", row)
    db.commit()


def nearest(db: duckdb.DuckDBPyConnection, vector: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Return the paths and cosines of the pictures most like the vector, nearest first."""
    return db.execute(
        f"""
        SELECT path, array_cosine_similarity(vector, ?::FLOAT[{vector.size}]) AS score
        FROM pictures ORDER BY score DESC LIMIT {NEAREST}""",
        [vector],
    ).fetchall()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", help="address of a pixvec server, HOST:PORT")
    parser.add_argument("folder", type=Path, help="the pictures to search in")
    parser.add_argument("query", type=Path, help="the picture to search by")
    parser.add_argument(
        "--store", type=Path, default=Path("pictures.duckdb"), help="where the vectors are kept"
    )
    main(**vars(parser.parse_args()))
