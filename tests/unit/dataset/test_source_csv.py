"""A csv or tsv file as a source."""

import json
from pathlib import Path

import pytest
from support import photos

from pixvec import InputError
from pixvec.dataset._pictures import SourceOptions
from pixvec.dataset.sources import open_source


def _found(file: Path, text: str, **options: str) -> list[tuple[str, str | None]]:
    file.write_text(text, encoding="utf-8")
    source = open_source(file, SourceOptions(**options))  # type: ignore[arg-type]
    found = [(picture.id, picture.label) for picture in source.pictures()]
    assert source.total == len(found)
    return found


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("cat,a.png\n\ndog,b.png\n", {}),
        ("\ufeffcat,a.png\r\n \r\ndog,b.png", {}),
        ("Path,n,Label\na.png,1,cat\nb.png,2,dog\n", {}),
        ("class,uri\ncat,a.png\ndog,b.png\n", {}),
        ("\ufefffilename,target\na.png,cat\nb.png,dog\n", {}),
        ("id,Photo,Kind\n1,a.png,cat\n2,b.png,dog\n", {"path_column": "photo", "label_column": "Kind"}),
        ("a.png,cat\nb.png,dog\n", {"path_column": "0"}),
        ("cat,1,a.png\ndog,2,b.png\n", {"path_column": "2", "label_column": "0"}),
        ("n,file,label,kind\n1,a.png,x,cat\n2,b.png,x,dog\n", {"label_column": "3"}),
        ('"cat","a.png"\n"dog","b.png"\n', {}),
        ("cat;a.png\ndog;b.png\n", {}),
        ('\ufeff"Label";"Path"\r\n"cat";"a.png"\r\n"dog";"b.png"\r\n', {}),
        ("path\tlabel\na.png\tcat\nb.png\tdog\n", {}),
        ("cat,a.png\rdog,b.png\r", {}),
    ],
)
def test_columns_are_found_by_place_by_name_or_as_told(
    tmp_path: Path, text: str, options: dict[str, str]
) -> None:
    assert _found(tmp_path / "list.csv", text, **options) == [("a.png", "cat"), ("b.png", "dog")]


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na.png,cat\nb.png,dog\n",
        "label,file_name\ncat,a.png\ndog,b.png\n",
        "LABEL,File Name\ncat,a.png\ndog,b.png\n",
        "image-path,class name\na.png,cat\nb.png,dog\n",
        "ImageID,Label\na.png,cat\nb.png,dog\n",
        "filepath,class_name\na.png,cat\nb.png,dog\n",
        "img,category\na.png,cat\nb.png,dog\n",
        "url,label\na.png,cat\nb.png,dog\n",
        "image,where,label\n17,a.png,cat\n18,b.png,dog\n",
        ",path,label\n0,a.png,cat\n1,b.png,dog\n",
        "label,path,split,width\ncat,a.png,train,160\ndog,b.png,test,160\n",
        "a.png,cat\nb.png,dog\n",
        "path|label\na.png|cat\nb.png|dog\n",
        "# made by a tool\npath,label\na.png,cat\nb.png,dog\n",
        'label, path\ncat, "a.png"\n dog , b.png\n',
    ],
)
def test_columns_are_found_by_their_cells(tmp_path: Path, text: str) -> None:
    assert _found(tmp_path / "list.csv", text) == [("a.png", "cat"), ("b.png", "dog")]


def test_of_two_columns_that_look_like_paths_the_one_whose_files_are_there_is_taken(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    found = [("a.png", "v1.jpg"), ("b.png", "v2.jpg")]
    assert _found(tmp_path / "list.csv", "a.png,v1.jpg\nb.png,v2.jpg\n") == found
    assert _found(tmp_path / "list.csv", "v1.jpg,a.png\nv2.jpg,b.png\n") == found
    (tmp_path / "a").write_bytes(b"x")
    assert _found(tmp_path / "list.csv", "a\nb.png\n")[0] == ("a", None)


@pytest.mark.parametrize(
    ("text", "options", "first"),
    [
        ("image_id,breed\nx1,dingo\n", {"path_column": "image_id"}, ("x1", None)),
        ("x1,dingo\n", {"path_column": "0"}, ("x1", "dingo")),
        ("dingo,x1\n", {"label_column": "0"}, ("x1", "dingo")),
        ("x1\nx2\n", {}, ("x1", None)),
        ("dingo,x1\ncat,x2\ncat,x3.png\n", {}, ("x1", "dingo")),
    ],
)
def test_paths_without_suffix_are_taken_where_one_column_can_hold_them(
    tmp_path: Path, text: str, options: dict[str, str], first: tuple[str, str | None]
) -> None:
    assert _found(tmp_path / "list.csv", text, **options)[0] == first


def test_backslashes_are_slashes_where_there_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(photos.data("moon.png"))
    (tmp_path / "list.csv").write_text("path,label\nsub\\a.png,x\n")
    (picture,) = open_source(tmp_path / "list.csv").pictures()
    assert Path(str(picture.read())).read_bytes() == photos.data("moon.png")


def test_json_lines_are_a_table_with_names(tmp_path: Path) -> None:
    lines = '{"file_name": "a.png", "objects": {"bbox": []}}\n\n{"label": 3, "file_name": "b.png"}\n'
    assert _found(tmp_path / "metadata.jsonl", lines) == [("a.png", None), ("b.png", "3")]
    for text, said in (
        ('{"file_name": "a"}\n[1]', "line 2: it holds a list"),
        ("{\n", "line 1: "),
        ("", "lists no"),
    ):
        with pytest.raises(InputError, match=said):
            _found(tmp_path / "metadata.jsonl", text)


@pytest.mark.parametrize("options", [{}, {"label_column": "label"}, {"label_column": "1"}])
def test_a_label_of_json_that_is_none_is_counted_and_the_image_stays(
    tmp_path: Path, options: dict[str, str]
) -> None:
    rows: tuple[object, ...] = (["cat", "pet"], "dog", {"name": "cat"}, None, 3, [])
    lines = (json.dumps({"path": f"{i}.png", "label": label, "box": []}) for i, label in enumerate(rows))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "list.jsonl", SourceOptions(**options))  # type: ignore[arg-type]
    for _ in range(2):
        assert [p.label for p in source.pictures()] == [None, "dog", None, None, "3", None]
        [left_out] = source.omissions.all()  # type: ignore[attr-defined]
        assert (left_out.what, left_out.count) == ("label", 3)
        assert left_out.examples[0] == "list.jsonl: line 1: a label is a text or a number, not list"


def test_columns_of_which_one_may_be_the_class_are_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.png,160,cat\nb.png,160,dog\n")
    source = open_source(tmp_path / "list.csv")
    assert [picture.label for picture in source.pictures()] == [None, None]
    [left_out] = source.omissions.all()  # type: ignore[attr-defined]
    assert (left_out.count, left_out.examples) == (2, ("1, 2",))
    assert "--label-column" in left_out.reason


def test_a_tsv_file_and_a_column_of_paths(tmp_path: Path) -> None:
    assert _found(tmp_path / "list.tsv", "cat, large\ta,b.png\n") == [("a,b.png", "cat, large")]
    assert _found(tmp_path / "list.csv", "a.png\nb.png\n") == [("a.png", None), ("b.png", None)]
    assert _found(tmp_path / "list.csv", "path\na.png\n") == [("a.png", None)]
    assert _found(tmp_path / "list.csv", "label,path\n,a.png\n") == [("a.png", None)]


def test_a_class_named_as_a_column_might_be_is_no_header(tmp_path: Path) -> None:
    found = _found(tmp_path / "list.csv", "image,a.png\nfile,b.PNG\n")
    assert found == [("a.png", "image"), ("b.PNG", "file")]


def test_what_is_in_quotes_divides_no_cells(tmp_path: Path) -> None:
    assert _found(tmp_path / "list.csv", '"a;b.png"\n"c;d.png"\n') == [("a;b.png", None), ("c;d.png", None)]
    assert _found(tmp_path / "list.csv", '"cat, old";a.png\n') == [("a.png", "cat, old")]
    assert _found(tmp_path / "list.csv", '"cat\nand ""dog""",a.png\n') == [("a.png", 'cat\nand "dog"')]


def test_a_path_that_comes_again_is_another_image_with_an_id_of_its_own(tmp_path: Path) -> None:
    found = _found(tmp_path / "list.csv", "cat,a.png\ndog,a.png\ncat,a.png#2\nowl,a.png\n")
    assert found == [("a.png", "cat"), ("a.png#2", "dog"), ("a.png#2#2", "cat"), ("a.png#3", "owl")]


def test_paths_are_relative_to_the_file_and_urls_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(photos.data("moon.png"))
    far = "https://example.org/x.png"
    file_url = (tmp_path / "a.png").as_uri()
    (tmp_path / "sub" / "list.csv").write_text(
        f"m,../a.png\nm,{tmp_path}/a.png\nm,{far}\nm,{file_url}\nm,no.png\n"
    )
    near, absolute, url, local, gone = open_source(tmp_path / "sub" / "list.csv").pictures()
    for picture in (near, absolute, local):
        assert Path(str(picture.read())).read_bytes() == photos.data("moon.png")
        assert picture.stamp == near.stamp != "missing"
    assert (url.read(), url.uri) == (far, far)
    assert gone.stamp == "missing"
    with pytest.raises(OSError, match=r"No such file.*no\.png"):
        gone.read()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\0b.png", "a path cannot hold a null byte$"),
        ("file://[/%00", "a path cannot hold a null byte$"),
        ("file:///a%00/b.png", "a path cannot hold a null byte$"),
        ("x" * 5000 + ".png", "too long"),
        ("sub.png", "not a regular file$"),
    ],
)
def test_a_path_that_no_file_can_have_fails_when_it_is_read(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "list.csv").write_text(f"cat,{name}\n")
    (picture,) = open_source(tmp_path / "list.csv").pictures()
    assert picture.stamp == "missing"
    with pytest.raises(OSError, match=why):
        picture.read()


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (b"", {}, "lists no images"),
        (b"label,path\n", {}, "lists no images"),
        (b"cat,a.png\n\ndog\n", {}, "line 3: 1 columns"),
        (b"cat,a.png\ndog,\n", {}, "line 2: its path is empty"),
        (b'cat,a.png\ndog,"b.png\n', {}, "line 2: unexpected end"),
        (b"cat,a.png\nd\xf6g,b.png\n", {}, "not UTF-8: save it as that"),
        ("cat,a.png\n".encode("utf-16"), {}, "not UTF-8: save it as that"),
        (b"label,path\ncat,a.png\n", {"label_column": "kind"}, "label_column is 'kind'.*'label', 'path'"),
        (b"cat,a.png\n", {"path_column": "photo"}, "path_column is 'photo'"),
        (b"cat,a.png\n", {"path_column": "7"}, "line 1: 2 columns.* path is in column 7$"),
        (b"a.png,3,cat\n", {"path_column": "9"}, "line 1: 3 columns.* the path is in column 9$"),
        (b"a.png,3\n", {"label_column": "9"}, "line 1: 2 columns.* the path is in column 0, the label in 9$"),
        (b"image_id,breed\nx1,boston_bull\n", {}, "which of its columns 0, 1 is the path.*--path-column"),
        (b"x1,boston_bull\nx2,dingo\n", {}, r"which of its columns 0, 1 is the path\?"),
        (b"bull;x1;5\ndingo;x2;6\n", {"label_column": "0"}, r"which of its columns 1, 2 is the path\?"),
        (b"http,//h/1\n", {}, r"which of its columns 0, 1 is the path\?"),
        (b"kind,where\ncat,a/1\n", {"label_column": "kind"}, r"'where' is the path\? Give path_column"),
        (b"a.png,mask.png\nb.png,mask.png\n", {}, r"which of its columns 0, 1 is the path\? .*--path-column"),
        (b"one,two\na.png,b.png\n", {}, "which of its columns 'one', 'two' is the path"),
    ],
)
def test_a_broken_file_is_refused_at_once(
    tmp_path: Path, data: bytes, options: dict[str, str], said: str
) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        open_source(tmp_path / "list.csv", SourceOptions(**options))  # type: ignore[arg-type]
    assert str(tmp_path / "list.csv") in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: No such file"):
        open_source(tmp_path / "gone.csv")
