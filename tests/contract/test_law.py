"""Who may import whom. Dependencies point one way; each third-party name has its owners."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "pixvec_server"
CLIENT = ROOT / "client" / "pixvec"

# A room imports rooms of the lines below its own, never of its own line or above.
SERVER_ORDER = (
    {"__main__"},
    {"cli"},
    {"frontends"},
    {"app"},
    {"rpc"},
    {"similarity"},
    {"pipeline", "verify", "pca", "tune"},
    {"inference"},
    {"reading", "offline"},
    {"engine"},
    {"served"},
    {"export", "listing", "upstream"},
    {"torch_export", "lite_export"},
    {"foreign", "provision", "tuned"},
    {"graph_check"},
    {"backends"},
    {"module"},
    {
        "batching",
        "cache",
        "capture",
        "preprocess",
        "catalog",
        "metrics",
        "statistics",
        "tokenizer",
        "forms",
        "models",
    },
    {"bundle", "cpu"},
    {
        "manifest",
        "config",
        "log",
        "cuda",
        "memory",
        "threads",
        "vectors",
        "graphfile",
        "agreement",
        "probes",
    },
    {"spec"},
    {"types"},
    {"errors", "oip", "logwriter"},
)
CLIENT_ORDER = (
    {"__main__"},
    {"cli"},
    {"_dataset_commands"},
    {"_console", "_sinks", "compat", "explore"},
    {"dataset"},
    {"_parquet"},
    {"_rows"},
    {"_sources"},
    {"_glob"},
    {"_image_files"},
    {"_omissions"},
    {"_client", "_aio"},
    {"_core"},
    {"_many"},
    {"_calls"},
    {"_chunks", "_codec", "_streams"},
    {"_effects", "_tensors", "_inputs", "_channel", "_downscale", "_window", "_profile"},
    {"_complete", "_fetch", "_orientation", "_target"},
    {"_errors"},
    {"_types", "_urls"},
    {"v1", "_version"},
)
OWNERS = {
    "grpc": {"rpc"},
    "grpc_health": {"rpc"},
    "grpc_reflection": {"rpc"},
    "google": {"rpc", "graphfile"},
    "torch": {"module", "torch_export", "upstream", "backends/torch"},
    "timm": {"module", "torch_export", "upstream"},
    "open_clip": {"module", "upstream"},
    "transformers": {"module", "upstream"},
    "huggingface_hub": {"module"},
    "safetensors": {"module"},
    "tokenizers": {"tokenizer", "module"},
    "ftfy": {"tokenizer"},
    "onnx": {"torch_export", "lite_export", "foreign", "models"},
    "onnxruntime": {"backends/onnx", "backends/bound"},
    "openvino": {"backends/openvino"},
    "PIL": {"preprocess"},
    "simplejpeg": {"preprocess"},
    "cykooz_resizer": {"preprocess"},
    "nvidia": {"preprocess/nvjpeg"},
    "prometheus_client": {"metrics", "frontends/exposition"},
    "structlog": {"log", "rpc"},
    "pydantic": {"config", "spec", "manifest", "bundle", "catalog", "foreign", "provision", "tuned"},
    "pydantic_core": {"config"},
    "typer": {"cli"},
    "rich": {"cli"},
    "numpy": None,
    "pixvec": {"rpc"},
}
CLIENT_OWNERS = {
    "grpc": None,
    "google": None,
    "numpy": None,
    "PIL": {"_inputs", "_downscale", "_complete", "_orientation", "dataset", "explore"},
    "pyarrow": {"_parquet", "dataset"},
    "sklearn": {"dataset"},
    "umap": {"dataset"},
    "usearch": {"dataset"},
    "matplotlib": {"dataset"},
    "torch": {"dataset/exports"},
    "bokeh": {"explore"},
    "typer": {"cli", "_console", "_dataset_commands"},
    "rich": {"cli", "_console", "_dataset_commands"},
    "pixvec": None,
}


def _files(package: Path) -> list[Path]:
    return [
        path
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] != "v1" and not path.stem.endswith("_pb2")
    ]


def _imports(path: Path, package: Path) -> set[str]:
    """Every module that a file imports, in full, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.name if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def _room(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


@pytest.mark.parametrize(("package", "order"), [(SERVER, SERVER_ORDER), (CLIENT, CLIENT_ORDER)])
def test_dependencies_point_down(package: Path, order: tuple[set[str], ...]) -> None:
    level = {room: i for i, rooms in enumerate(order) for room in rooms}
    for path in _files(package):
        room = _room(path, package)
        if room == "__init__":
            continue
        for name in _imports(path, package):
            first, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if first != package.name or target == room or target not in level:
                continue
            assert level[target] > level[room], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(("package", "order"), [(SERVER, SERVER_ORDER), (CLIENT, CLIENT_ORDER)])
def test_every_room_stands_in_the_law(package: Path, order: tuple[set[str], ...]) -> None:
    rooms = {_room(path, package) for path in _files(package)} - {"__init__"}
    assert rooms <= set().union(*order)


@pytest.mark.parametrize(("package", "owners"), [(SERVER, OWNERS), (CLIENT, CLIENT_OWNERS)])
def test_each_third_party_name_has_its_owners(package: Path, owners: dict[str, set[str] | None]) -> None:
    for path in _files(package):
        places = {_room(path, package), str(path.relative_to(package)).removesuffix(".py")}
        for name in _imports(path, package):
            first = name.partition(".")[0]
            if first in sys.stdlib_module_names or first in {package.name, "__future__"}:
                continue
            assert first in owners, f"{path.relative_to(ROOT)} imports {name}, which nobody owns"
            allowed = owners[first]
            assert allowed is None or places & allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_server_takes_only_the_contract_from_the_client() -> None:
    for path in _files(SERVER):
        ours = {name for name in _imports(path, SERVER) if name.partition(".")[0] == "pixvec"}
        assert all(name.startswith("pixvec.v1.") for name in ours), path


@pytest.mark.parametrize(
    ("package", "owner"), [(SERVER, {"config"}), (CLIENT, {"_console", "compat", "dataset"})]
)
def test_the_environment_is_read_in_one_place(package: Path, owner: set[str]) -> None:
    readers = {
        _room(path, package)
        for path in _files(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert readers <= owner


def test_pillows_globals_are_never_set() -> None:
    for path in _files(SERVER) + _files(CLIENT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert node.attr not in {"MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES"}, path
