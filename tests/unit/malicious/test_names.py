"""Names and sources of models made to harm: none is ever a path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.hostile import edit_manifest

from pixvec_server import bundle, catalog, provision
from pixvec_server.errors import BundleError, CatalogError, ConfigError, SetupError

EVIL_NAMES = (
    *("../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "a\nb", "name\n", "a\0b", " ", "a b", "-rf", "~", "*"),
    *("$(id)", "é", "a" * 65, "../../../../etc/passwd", "%2e%2e", "\u202ename"),
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_name_is_never_a_path(name: str) -> None:
    for text in (name, f"{name}=timm:test_resnet.r160_in1k", f"{name}?layer=pooled"):
        with pytest.raises((ConfigError, CatalogError)):
            provision.parse(text)


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_name_of_a_bundle_or_a_spec_is_never_a_path(tmp_path: Path, name: str) -> None:
    folder = tiny.write(tmp_path / "tiny")
    edit_manifest(folder, lambda m: m.update(name=name))
    with pytest.raises(BundleError, match="name"):
        bundle.load(folder)
    with pytest.raises(CatalogError):
        catalog.checked({"name": name, "source": "timm:x"}, "here")
    with pytest.raises((ConfigError, BundleError)):
        provision.obtain(provision.parse(f"{name}={tmp_path / 'tiny'}"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@given(st.text(max_size=80), st.sampled_from(["timm", "open_clip", "hf", "file", "wheel"]))
def test_whatever_a_source_is_its_bundle_stays_inside_the_cache(words: str, kind: str) -> None:
    try:
        spec = provision.parse(f"{kind}:{words}").spec
    except SetupError:
        return
    assert spec is not None
    place = provision.cached(spec, Path("/cache"))
    assert place.parent == Path("/cache/bundles/v2")
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", place.name)


@pytest.mark.parametrize(
    "source", ["timm:../../x", "hf:../../etc", "file:/../../../etc/shadow", "wheel:..", "hf:a/../b"]
)
def test_a_source_with_dots_makes_a_plain_name_or_none(source: str) -> None:
    try:
        spec = provision.parse(source).spec
    except CatalogError:
        return
    assert spec is not None
    assert provision.cached(spec, Path("/cache")).parent == Path("/cache/bundles/v2")
    assert "/" not in spec.name
