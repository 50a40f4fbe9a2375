"""Tar archives as a source."""

import os
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import photos
from unit.client.archives import header, write

from pixvec import InputError
from pixvec._sources import MOST_MEMBER_BYTES
from pixvec.dataset._pictures import Picture, SourceOptions
from pixvec.dataset.sources import open_source

A, B = photos.data("china.jpg"), photos.data("flower.jpg")
END = bytes(2 * tarfile.BLOCKSIZE)


def _pictures(given: Path | str) -> list[Picture]:
    return list(open_source(given).pictures())


def _why(picture: Picture) -> str:
    with pytest.raises(OSError, match=r".") as caught:
        picture.read()
    return str(caught.value)


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz")])
def test_members_of_one_key_are_an_image_and_its_label(tmp_path: Path, name: str, mode: str) -> None:
    members = [
        ("d/002.jpg", A),
        ("d/002.cls", b" 7\n"),
        ("d/001.json", b'{"label": "cat", "n": 1}'),
        ("d/001.left.jpg", B),
        ("d/001.right.PNG", A),
        ("e/001.jpg", A),
        ("x.json", b'{"label": 3}'),
        ("x.cls", "Bär".encode()),
        ("x.jpg", B),
        ("y.jpg", A),
        ("y.json", b"[1, 2]"),
        ("._y.jpg", b"junk"),
        ("z.JPG", A),
        ("z.CLS", b"loud"),
    ]
    source = open_source(write(tmp_path / name, members, mode))
    found = [(picture.id, picture.label) for picture in source.pictures()]
    assert found == [
        (f"{name}!d/002.jpg", "7"),
        (f"{name}!d/001.left.jpg", "cat"),
        (f"{name}!d/001.right.PNG", "cat"),
        (f"{name}!e/001.jpg", None),
        (f"{name}!x.jpg", "Bär"),
        (f"{name}!y.jpg", None),
        (f"{name}!z.JPG", "loud"),
    ]
    assert (source.kind, source.total) == ("tar", None)
    assert [picture.read() for picture in source.pictures()] == [A, B, A, A, B, A, A]
    assert next(source.pictures()).uri == f"{tmp_path / name}!d/002.jpg"


def test_a_key_ends_before_the_first_dot_and_its_parts_have_labels_of_their_own(tmp_path: Path) -> None:
    members = [
        *(("22.00.jpg", A), ("22.00.cls", b"0"), ("22.01.jpg", B), ("22.01.json", b'{"label": 1}')),
        *(("22.02.jpg", A), ("22.cls", b"all"), ("22.09.cls", b"9"), ("alone.cls", b"x"), ("22.txt", b"x")),
    ]
    source = open_source(write(tmp_path / "a.tar", [(f"cats.v1/{name}", data) for name, data in members]))
    assert [(picture.id[-9:], picture.label) for picture in source.pictures()] == [
        *(("22.00.jpg", "0"), ("22.01.jpg", "1"), ("22.02.jpg", "all"))
    ]
    left_out = {one.what: (one.count, one.examples) for one in source.omissions.all()}  # type: ignore[attr-defined]
    assert left_out == {
        "label": (2, ("a.tar!cats.v1/22.09.cls", "a.tar!cats.v1/alone.cls")),
        "file": (1, ("a.tar!cats.v1/22.txt",)),
    }


def test_archives_go_before_tables_that_hold_their_metadata(tmp_path: Path) -> None:
    write(tmp_path / "00000.tar", [("1.jpg", A), ("1.json", b"{}"), ("1.txt", b"a cat")])
    pq.write_table(pa.table({"url": ["http://127.0.0.1:9/1.jpg"], "key": ["1"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    source = open_source(tmp_path)
    assert (source.kind, [picture.id for picture in source.pictures()]) == ("tar", ["00000.tar!1.jpg"])
    found = {one.examples for one in source.omissions.all()}  # type: ignore[attr-defined]
    assert found == {("00000.parquet",), ("00000_stats.json",), ("00000.tar!1.txt",)}
    assert open_source(tmp_path, SourceOptions(kind="parquet")).kind == "parquet"


def test_archives_are_given_as_a_folder_or_as_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.tar", "a.tar", "sub/c.tar"):
        write(tmp_path / name, [("1.jpg", A)])
    assert [picture.id for picture in _pictures(tmp_path)] == [
        "a.tar!1.jpg",
        "b.tar!1.jpg",
        "sub/c.tar!1.jpg",
    ]
    assert [picture.id for picture in _pictures(f"{tmp_path}/*.tar")] == ["a.tar!1.jpg", "b.tar!1.jpg"]
    twice = [picture.id for picture in _pictures(write(tmp_path / "d.tar", [("1.jpg", A), ("1.jpg", B)]))]
    assert twice == ["d.tar!1.jpg", "d.tar!1.jpg#2"]
    with pytest.raises(InputError, match="no tar archive"):
        _pictures(f"{tmp_path}/x*.tar")


def test_a_pattern_of_archives_ends_where_links_lead_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("1.jpg", A)])
    for name in ("self", "again"):
        (tmp_path / name).symlink_to(".")
    source = open_source(f"{tmp_path}/**/*.tar")
    assert [picture.id for picture in source.pictures()] == ["a.tar!1.jpg"]
    assert [(one.what, one.count) for one in source.omissions.all()] == [("folder", 2)]  # type: ignore[attr-defined]


def test_a_range_of_archives_is_a_pattern_too_and_one_that_is_missing_says_so(tmp_path: Path) -> None:
    for name in ("s-08.tar", "s-09.tar", "s-11.tar"):
        write(tmp_path / name, [("1.jpg", A)])
    found = _pictures(f"{tmp_path}/s-{{08..11}}.tar")
    assert [picture.id for picture in found] == [
        "s-08.tar!1.jpg",
        "s-09.tar!1.jpg",
        "s-10.tar",
        "s-11.tar!1.jpg",
    ]
    assert "s-10.tar: the archive cannot be read to its end: No such file" in _why(found[2])
    with pytest.raises(InputError, match="a range of more than 1000000 archives"):
        _pictures(f"{tmp_path}/{{000..999}}/{{0..9999}}.tar")
    with pytest.raises(InputError, match="no tar archive"):
        _pictures(f"{tmp_path}/s-{{11..08}}.tar")


def test_archives_without_an_image_are_refused_at_their_end(tmp_path: Path) -> None:
    for members in ([], [("1.txt", b"cat"), ("1.cls", b"7")]):
        source = open_source(write(tmp_path / "a.tar", members))
        with pytest.raises(InputError, match=r"a\.tar: no image is in it; images are members KEY\.SUFFIX"):
            list(source.pictures())


def test_a_pipe_in_a_folder_of_archives_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    write(tmp_path / "b.tar", [("1.jpg", A)])
    pipe, good = open_source(tmp_path, SourceOptions(strict=True)).pictures()
    assert "a.tar: the archive cannot be read to its end: it is not a regular file" in _why(pipe)
    assert (pipe.stamp, good.read()) == ("missing", A)
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: it is not a regular file"):
        open_source(tmp_path)


def test_a_stamp_changes_with_the_member_alone(tmp_path: Path) -> None:
    first = [p.stamp for p in _pictures(write(tmp_path / "a.tar", [("1.jpg", A), ("2.jpg", B)]))]
    moved = [p.stamp for p in _pictures(write(tmp_path / "a.tar", [("2.jpg", B), ("1.jpg", A[:-1] + b"x")]))]
    assert first[1] == moved[0]
    assert first[0] not in moved


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (("1.cls", b"\xff"), "can't decode"),
        (("1.json", b"{"), "Expecting property name"),
        (("1.json", b"[" * 100_000), "recursion"),
        (("1.json", b'{"label": [1]}'), "a label is a text or a number, not list"),
        (("1.json", b'{"label": {"name": "cat"}}'), "a label is a text or a number, not dict"),
        (("1.json", b'{"label": "\xe9"}'), "can't decode"),
        (("1.cls", bytes(2 << 20)), "over the 1048576 of a label"),
    ],
)
def test_an_image_whose_label_is_broken_stays_without_it(
    tmp_path: Path, label: tuple[str, bytes], said: str
) -> None:
    members = [("1.a.jpg", A), ("1.b.jpg", B), label, ("2.jpg", B), ("2.cls", b"dog")]
    source = open_source(write(tmp_path / "a.tar", members))
    for _ in range(2):
        assert [(picture.read(), picture.label) for picture in source.pictures()] == [
            *((A, None), (B, None), (B, "dog"))
        ]
        [left_out] = source.omissions.all()  # type: ignore[attr-defined]
        assert (left_out.what, left_out.count) == ("label", 1)
        assert left_out.examples[0].startswith(f"a.tar!{label[0]}: ")
        assert said in left_out.examples[0]


def test_links_and_giants_are_not_read(tmp_path: Path) -> None:
    giant = header("big.jpg", MOST_MEMBER_BYTES + 1)
    link = header("link.jpg", 0, tarfile.SYMTYPE)
    (tmp_path / "a.tar").write_bytes(link + giant)
    linked, big, rest = _pictures(tmp_path / "a.tar")
    assert (linked.stamp, big.stamp) == ("missing", "missing")
    assert "a link or a device" in _why(linked)
    assert f"over the {MOST_MEMBER_BYTES}" in _why(big)
    assert "cannot be read to its end" in _why(rest)


def test_a_key_that_never_ends_is_not_held_whole(tmp_path: Path) -> None:
    size, count = 4 << 20, 24
    write(tmp_path / "a.tar", ((f"film.{frame:03d}.jpg", bytes(size)) for frame in range(count)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(tmp_path / "a.tar").pictures()) == count
        assert tracemalloc.get_traced_memory()[1] < (64 << 20) + 4 * size
    finally:
        tracemalloc.stop()


def test_where_an_archive_breaks_off_a_picture_says_so_and_the_next_archive_goes_on(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", [("1.jpg", A), ("2.jpg", B)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(A) + 4000])
    write(tmp_path / "b.tar", [("3.jpg", B)])
    found = {picture.id: picture for picture in _pictures(tmp_path)}
    assert list(found) == ["a.tar!1.jpg", "a.tar", "b.tar!3.jpg"]
    assert found["a.tar!1.jpg"].read() == A
    assert f"{tmp_path}/a.tar: the archive cannot be read to its end" in _why(found["a.tar"])


@pytest.mark.parametrize(
    "data", [b"", b"no archive", b"\x1f\x8b no gzip", header("pax", 1 << 40, tarfile.XHDTYPE)]
)
def test_bytes_that_are_no_archive_are_a_picture_that_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    (picture,) = _pictures(tmp_path / "a.tar")
    assert picture.id == "a.tar"
    assert f"{tmp_path}/a.tar" in _why(picture)
