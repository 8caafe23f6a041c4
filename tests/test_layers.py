"""Imports point downwards only."""

import ast
from pathlib import Path

import netnsfs

LAYERS = (
    "__init__",
    "journal linux tree",
    "permissions presence workers",
    "config delegations nsfs",
    "spares",
    "netns members nsid",
    "holders metrics pool views",
    "files",
    "root",
    "fuse",
    "trace",
    "mount",
    "daemon",
    "cli",
    "__main__",
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer.split()}
PACKAGE = Path(netnsfs.__file__).parent


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "netnsfs":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.removeprefix("netnsfs."))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_downwards() -> None:
    modules = {path.stem: imports_of(path) for path in PACKAGE.glob("*.py")}
    assert set(modules) == set(RANK)
    for module, imported in modules.items():
        assert all(RANK[name] < RANK[module] for name in imported & set(RANK)), module


def test_only_the_adapter_and_the_mount_know_fuse_and_trio() -> None:
    users = {
        path.stem for path in PACKAGE.glob("*.py") if imports_of(path) & {"pyfuse3", "trio"}
    }
    assert users == {"fuse", "mount", "pool", "trace"}
    assert "netns" not in imports_of(PACKAGE / "fuse.py")
