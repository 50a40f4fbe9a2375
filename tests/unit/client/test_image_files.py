"""The one rule by which files of folders and archives are taken for images, and the count of the others."""

import os
from pathlib import Path

import pytest
from unit.client.archives import write

from pixvec import InputError
from pixvec._image_files import HIDDEN, NO_SUFFIX, NOT_AN_IMAGE, READ_BEFORE, SYSTEM, files_under
from pixvec._omissions import MAX_EXAMPLES, MAX_LINES, MAX_REASONS, LeftOut, Omissions, lines
from pixvec._sources import Item, Unreadable, find
from pixvec.dataset.sources import open_source

TAKEN = [
    *("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e.pjpeg", "f.pjp", "g.avif", "h.dib", "i.TIF", "j.tiff"),
    *("k.webp", "l.png", "m.gif", "n.bmp", "sub/deep/o.Png", "zero.png"),
]
LEFT_OUT = {
    "p.heic": "HEIC",
    "q.JXL": "JPEG XL",
    "r.jp2": "JPEG 2000",
    "s.dng": "camera RAW",
    "s.CR2": "camera RAW",
    "t.svg": "SVG",
    "u.psd": "Photoshop",
    "v.ppm": "PNM",
    "w.ico": "icon",
    "notes.txt": NOT_AN_IMAGE,
    "sub/README": NO_SUFFIX,
    "._a.jpg": SYSTEM,
    "sub/.DS_Store": SYSTEM,
    "Thumbs.db": SYSTEM,
    "desktop.ini": SYSTEM,
    ".hidden.png": HIDDEN,
    "more.tar": "an archive",
}
FOLDERS = {"__MACOSX/._b.jpg": SYSTEM, "@eaDir/thumb.jpg": SYSTEM, ".thumbs/t.jpg": HIDDEN}


def _tree(root: Path) -> None:
    for name in (*TAKEN, *LEFT_OUT, *FOLDERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _count(left_out: tuple[LeftOut, ...]) -> int:
    return sum(one.count for one in left_out)


def test_both_commands_take_the_same_files_of_a_folder_and_count_the_others(tmp_path: Path) -> None:
    _tree(tmp_path)
    found, source = find([str(tmp_path)], ()), open_source(tmp_path)
    assert sorted(item.name for item in found.items) == [str(tmp_path / name) for name in sorted(TAKEN)]
    assert [picture.id for picture in source.pictures()] == sorted(TAKEN)
    by_files, by_dataset = found.omissions.all(), source.omissions.all()  # type: ignore[attr-defined]
    assert by_files == by_dataset
    assert _count(by_files) == len(LEFT_OUT) + len(FOLDERS)
    for name, said in LEFT_OUT.items():
        omissions = Omissions()
        assert files_under(tmp_path, omissions) == sorted(TAKEN)
        [reason] = {one.reason for one in omissions.all() if said in one.reason and one.what == "file"}
        assert reason, name
    folders = {one.reason: one.examples for one in by_files if one.what == "folder"}
    assert folders == {SYSTEM: ("@eaDir", "__MACOSX"), HIDDEN: (".thumbs",)}


def test_both_commands_take_the_same_members_of_an_archive(tmp_path: Path) -> None:
    members = [(name, b"x") for name in (*TAKEN, *LEFT_OUT, *FOLDERS, "./y.png", "../../z.png")]
    file = write(tmp_path / "a.tar", members)
    found, source = find([str(file)], ()), open_source(file)
    taken = [*TAKEN, "./y.png", "../../z.png"]
    assert [item.name for item in found.items] == [f"{file}!{name}" for name in taken]
    assert [picture.id for picture in source.pictures()] == [f"a.tar!{name}" for name in taken]
    counts = [
        sorted((one.reason, one.count) for one in omissions.all())
        for omissions in (found.omissions, source.omissions)  # type: ignore[attr-defined]
    ]
    assert counts[0] == counts[1]
    assert sum(count for _, count in counts[0]) == len(LEFT_OUT) + len(FOLDERS)


def test_links_are_followed_loops_end_and_broken_ones_fail(tmp_path: Path) -> None:
    root, far = tmp_path / "root", tmp_path / "far"
    (root / "dog").mkdir(parents=True)
    far.mkdir()
    (far / "1.jpg").touch()
    (root / "dog" / "2.jpg").touch()
    (root / "cat").symlink_to(far)
    (root / "dog" / "linked.jpg").symlink_to(far / "1.jpg")
    (root / "loop").symlink_to("..")
    (root / "self").symlink_to(".")
    (root / "dangling.jpg").symlink_to("gone.jpg")
    os.mkfifo(root / "pipe.jpg")
    names = ["cat/1.jpg", "dangling.jpg", "dog/2.jpg", "dog/linked.jpg", "pipe.jpg"]
    found = find([str(root)], ())
    items = {item.name.removeprefix(f"{root}/"): item for item in found.items}
    assert sorted(items) == names
    assert isinstance(items["pipe.jpg"].image, Unreadable)  # opening it would wait for ever
    source = open_source(root)
    pictures = {picture.id: picture for picture in source.pictures()}
    assert sorted(pictures) == names
    for name in ("dangling.jpg", "pipe.jpg"):
        with pytest.raises(OSError, match=r"No such file|not a regular file"):
            pictures[name].read()
    expected = (LeftOut("folder", READ_BEFORE, 2, ("loop", "self")),)
    assert found.omissions.all() == source.omissions.all() == expected  # type: ignore[attr-defined]


def test_a_folder_that_a_pattern_matches_is_counted_and_a_named_file_is_always_taken(tmp_path: Path) -> None:
    _tree(tmp_path)
    found = find([f"{tmp_path}/s*", str(tmp_path / "p.heic"), str(tmp_path / ".hidden.png")], ())
    names = [item.name.removeprefix(f"{tmp_path}/") for item in found.items]
    assert names == ["s.CR2", "s.dng", "p.heic", ".hidden.png"]
    [left_out] = found.omissions.all()
    assert (left_out.what, left_out.examples) == ("folder", (f"{tmp_path}/sub",))
    assert list(find([f"{tmp_path}/none*"], ()).items) == [Item(f"{tmp_path}/none*", f"{tmp_path}/none*")]


@pytest.mark.parametrize("names", [["a.heic", "b.heic"], [".a.jpg"], ["a.txt"], ["photo"]])
def test_where_nothing_is_left_the_error_says_why(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    for act in (lambda: find([str(tmp_path)], ()), lambda: open_source(tmp_path)):
        with pytest.raises(InputError, match=rf"no images .*; left out {len(names)} files?: .*{names[0]}"):
            act()


def test_what_is_told_is_bounded() -> None:
    omissions = Omissions()
    for reason in range(3 * MAX_REASONS):
        for _ in range(MAX_EXAMPLES + 2):
            omissions.add("file", f"reason {reason}", "x" * 1000)
    left_out = omissions.all()
    assert len(left_out) <= MAX_REASONS + 1
    assert _count(left_out) == 3 * MAX_REASONS * (MAX_EXAMPLES + 2)
    assert all(len(one.examples) <= MAX_EXAMPLES for one in left_out)
    told = list(lines(left_out))
    assert len(told) == MAX_LINES + 1
    assert max(map(len, told)) < 800
    assert omissions.copy().all() == left_out
    assert str(LeftOut("file", "why", 4, ("a", "b"))) == "4 files: why (a, b, …)"
    assert str(LeftOut("file", "why", 1, ("a",))) == "1 file: why (a)"
