"""Which images a command line names."""

import gzip
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from unit.client.archives import header, write

from pixvec import InputError, to_input
from pixvec._omissions import Omissions
from pixvec._sources import MOST_MEMBER_BYTES, Item, Unreadable, find, items

CONTENTS = [("b.png", os.urandom(3000)), ("notes.txt", b"no"), ("deep/a.JPG", os.urandom(3000))]
PACKINGS = [
    ("a.tar", "w"),
    ("a.tar.gz", "w:gz"),
    ("a.tgz", "w:gz"),
    ("a.tar.bz2", "w:bz2"),
    ("a.tar.xz", "w:xz"),
]
END = bytes(2 * tarfile.BLOCKSIZE)


def _why(item: Item) -> str:
    assert isinstance(item.image, Unreadable)
    assert repr(item.image) == item.name
    with pytest.raises(OSError, match=r".") as caught:
        item.image.read()
    return str(caught.value)


@pytest.mark.parametrize(("name", "mode"), PACKINGS)
def test_an_archive_is_its_images_in_its_own_order(tmp_path: Path, name: str, mode: str) -> None:
    file = write(tmp_path / name, CONTENTS, mode)
    assert list(items([str(file)], Omissions())) == [
        Item(f"{file}!b.png", CONTENTS[0][1]),
        Item(f"{file}!deep/a.JPG", CONTENTS[2][1]),
    ]


@pytest.mark.parametrize(("name", "mode"), [PACKINGS[0], PACKINGS[1], PACKINGS[4]])
def test_a_truncated_archive_yields_what_it_has_and_then_says_so(
    tmp_path: Path, name: str, mode: str
) -> None:
    file = write(tmp_path / name, [(f"{i}.png", os.urandom(3000)) for i in range(9)], mode)
    file.write_bytes(file.read_bytes()[:15_000])
    *whole, last = items([str(file)], Omissions())
    assert [item.name for item in whole] == [f"{file}!{i}.png" for i in range(len(whole))]
    assert 2 <= len(whole) <= 4
    assert last.name == str(file)
    assert "cannot be read to its end" in _why(last)


def test_an_archive_cut_off_between_two_members_is_not_taken_for_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", CONTENTS)
    file.write_bytes(file.read_bytes()[:3584])
    first, last = items([str(file)], Omissions())
    assert first.name == f"{file}!b.png"
    assert "no end mark" in _why(last)


def test_a_broken_header_is_not_the_archives_end(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", CONTENTS)
    data = bytearray(file.read_bytes())
    data[3584 + 148] ^= 0xFF  # the second header's checksum
    file.write_bytes(data)
    assert [item.name for item in items([str(file)], Omissions())] == [f"{file}!b.png", str(file)]


def test_a_hostile_members_name_is_just_a_name(tmp_path: Path) -> None:
    names = ["/etc/passwd.png", "../../up.png", "a\nb.png", "\x1b[31m.png"]
    file = write(tmp_path / "a.tar", [(name, b"x") for name in names])
    before = sorted(tmp_path.parent.rglob("*"))
    assert list(items([str(file)], Omissions())) == [Item(f"{file}!{name}", b"x") for name in names]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_links_devices_and_huge_members_fail_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    with file.open("wb") as tar:
        tar.writelines(header("x.png", 0, kind) for kind in kinds)
        tar.write(header("folder.png", 0, tarfile.DIRTYPE))
        tar.write(header("huge.png", MOST_MEMBER_BYTES + 512))
        tar.seek(MOST_MEMBER_BYTES + 512, os.SEEK_CUR)
        tar.write(header("good.png", 512) + b"g" * 512 + END)
    *links, huge, good = items([str(file)], Omissions())
    assert len(links) == len(kinds)
    assert all("not followed" in _why(item) for item in links)
    assert f"{MOST_MEMBER_BYTES + 512} bytes, over the" in _why(huge)
    assert good.image == b"g" * 512


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_bomb_in_a_header_costs_no_memory(tmp_path: Path, kind: bytes) -> None:
    file = tmp_path / "a.tar.gz"
    with gzip.open(file, "wb", 1) as tar:
        tar.write(header("good.png", 0) + header("bomb", 1 << 32, kind))
        for _ in range(32):
            tar.write(b"6 a=b\n\0\0" * (1 << 17))
    tracemalloc.start()
    try:
        good, bomb = items([str(file)], Omissions())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert good.name.endswith("good.png")
    assert "a header of more than" in _why(bomb)
    assert peak < 8 << 20


def test_headers_nested_without_end_are_one_failed_item(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes((header("x", 9, tarfile.XHDTYPE) + b"9 a=bbbb\n".ljust(512, b"\0")) * 1000)
    [failed] = items([str(file)], Omissions())
    assert "cannot be read to its end" in _why(failed)


def test_an_archive_is_streamed(tmp_path: Path) -> None:
    """Neither its images nor its headers stay in memory."""
    file = tmp_path / "a.tar"
    with file.open("wb") as tar:
        for number in range(2000):
            tar.write(header(f"{number}.png", 20_480))
            tar.seek(20_480, os.SEEK_CUR)
        tar.write(END)
    found = items([str(file)], Omissions())
    next(found)
    tracemalloc.start()
    try:
        assert sum(len(item.image) for item in found if isinstance(item.image, bytes)) == 1999 * 20_480
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_what_is_no_archive_is_a_failed_item(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "text.tar").write_bytes(b"no archive " * 100)
    words = {
        str(tmp_path / "none.tar"): "No such file",
        str(tmp_path / "folder.tar"): "Is a directory",
        str(tmp_path / "text.tar"): "cannot be read",
        "https://host/a.tar": "not from a URL",
    }
    for item, word in zip(items(words, Omissions()), words.values(), strict=True):
        assert word in _why(item)


def test_a_pattern_ends_where_links_lead_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    for name in ("self", "again"):
        (tmp_path / name).symlink_to(".")
    found = find([f"{tmp_path}/**/*.jpg"], [])
    assert [item.name for item in found.items] == [f"{tmp_path}/a.jpg"]
    assert [(one.what, one.count) for one in found.omissions.all()] == [("folder", 2)]


def test_folders_globs_archives_and_urls_mix_in_the_order_given(tmp_path: Path) -> None:
    for name in ("in/b.png", "in/a.jpg", "in/deep/c.webp", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write(tmp_path / "s2.tar", [("2.png", b"2")])
    write(tmp_path / "s1.tar", [("1.png", b"1")])
    given = ["http://host/x.png", f"{tmp_path}/s*.tar", f"{tmp_path}/in", f"{tmp_path}/none.png"]
    found = find(given, ())
    assert found.total is None
    names = [item.name.removeprefix(f"{tmp_path}/") for item in found.items]
    assert names == [
        *("http://host/x.png", "s1.tar!1.png", "s2.tar!2.png"),
        *("in/a.jpg", "in/b.png", "in/deep/c.webp", "none.png"),
    ]
    assert find([f"{tmp_path}/in"], ()).total == 3


def test_a_list_on_stdin_is_read_no_further_than_needed(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", CONTENTS)
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in ["x.png\n", "\n", f"{archive}\n", "http://host/y.png\n", "z.png"]:
            read += 1
            yield line

    found = find(["-"], lines())
    assert (found.total, read) == (None, 1)
    names = [item.name for item in islice(found.items, 3)]
    assert names == ["x.png", f"{archive}!b.png", f"{archive}!deep/a.JPG"]
    assert read == 3
    assert [item.name for item in found.items] == ["http://host/y.png", "z.png"]


NAMES_LIKE_URLS = [
    "data:,GIF87a%01.jpg",
    "https:evil.jpg",
    "http:evil.png",
    "file:evil.png",
    "DATA:x.png",
    "s3:x.png",
]


@pytest.mark.parametrize("word", [".", "*.*g", "**"])
def test_a_file_of_a_folder_or_a_glob_is_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES_LIKE_URLS:
        Path(name).write_bytes(name.encode())
    found = list(find([word], ()).items)
    assert sorted(item.name for item in found) == sorted(NAMES_LIKE_URLS)
    assert [to_input(item.image).image.decode() for item in found] == [item.name for item in found]


def test_a_word_is_the_file_of_its_name_unless_it_is_written_as_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES_LIKE_URLS:
        Path(name).write_bytes(name.encode())
    words = [name for name in NAMES_LIKE_URLS if not name.lower().startswith("data:")]
    for found in (find(words, ()), find(["-"], [f"{word}\n" for word in words])):
        assert [to_input(item.image).image.decode() for item in found.items] == words
    assert [item.image for item in find(["data:,x.png"], ()).items] == ["data:,x.png"]
    with pytest.raises(
        InputError, match=r"file:none.png: a file URL is written file:///path; .*\./file:none"
    ):
        to_input("file:none.png")


def test_an_archive_whose_name_is_like_a_url_is_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data:x.tar", [("1.png", b"1")])
    assert list(find(["*.tar"], ()).items) == [Item("data:x.tar!1.png", b"1")]


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(InputError, match="the name of an image is empty"):
        find(["", "x.png"], ())


def test_a_list_may_begin_with_a_byte_order_mark_and_has_no_null_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    [item] = find(["-"], [f"\ufeff{tmp_path}/a.png\r\n"]).items
    assert to_input(item.image).image == b"a"
    [item] = find(["-"], ["a.png\0b.png\0"]).items
    assert "a name a line" in _why(item)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"Rar!\x1a\x07\x01", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_an_archive_of_another_kind_is_named(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.tar").write_bytes(start + bytes(1000))
    [item] = items([str(tmp_path / "a.tar")], Omissions())
    assert f"it is a {kind} archive" in _why(item)


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", [("notes.txt", b"no")])
    for given in (str(tmp_path), "-", str(archive)):
        with pytest.raises(InputError, match="no images in"):
            find([given], ["\n"])


def test_a_name_that_is_not_unicode_can_be_written_down(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    [item] = items([path], Omissions())
    assert item.image == path
    assert item.name.encode().endswith(b"caf\\udce9.png")


def test_a_name_is_shown_without_credentials_and_never_at_length(tmp_path: Path) -> None:
    words = [
        "http://user:secret@host/x.png",
        "https://host/y.png?X-Amz-Signature=secret",
        "data:image/png;base64," + "A" * 10_000,
        "iVBORw0KGgo" * 1000,
        "x" * 300,
    ]
    found = list(find(words, []).items)
    assert [item.image for item in found] == words
    assert [item.name for item in found[:2]] == [
        "http://***@host/x.png",
        "https://host/y.png?X-Amz-Signature=***",
    ]
    assert all(len(item.name) < 400 for item in found)
