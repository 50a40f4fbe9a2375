"""Importing pixvec costs nothing until a name is used, and then only what the name needs."""

import subprocess
import sys

import pytest

import pixvec


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} | set(done.stdout.split())


def test_importing_the_package_loads_only_the_standard_library() -> None:
    assert not loaded_after("import pixvec") & {"grpc", "numpy", "google", "pixvec._client"}


def test_the_messages_load_no_client() -> None:
    loaded = loaded_after("import pixvec.v1.embedding_pb2")
    assert "google.protobuf" in loaded
    assert not loaded & {"grpc", "numpy", "pixvec._client", "pixvec._errors"}


def test_the_client_is_thin() -> None:
    loaded = loaded_after("import pixvec; pixvec.Client, pixvec.AsyncClient, pixvec.to_input")
    heavy = {"PIL", "torch", "onnxruntime", "openvino", "typer", "rich", "pydantic"}
    assert {"grpc", "numpy"} <= loaded
    assert not loaded & (heavy | {"pixvec_server"})


def test_every_name_is_there() -> None:
    assert sorted(pixvec.__all__) == pixvec.__all__
    for name in pixvec.__all__:
        assert getattr(pixvec, name) is not None
    assert dir(pixvec) == pixvec.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pixvec.nothing


def test_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from pixvec.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'pixvec[cli]'" in done.stderr
