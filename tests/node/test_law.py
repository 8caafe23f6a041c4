"""Which package may import which."""

import ast
from pathlib import Path

import pytest

import netnsfs

PACKAGE = Path(netnsfs.__file__).parent
TESTS = Path(__file__).parents[1]

FORBIDDEN = {
    "fuse": ("netnsfs.tree",),
    "tree": ("netnsfs.fuse", "pyfuse3", "trio"),
    "netns": ("netnsfs.fuse", "netnsfs.tree", "netnsfs.node", "pyfuse3", "trio"),
    "linux": ("netnsfs.",),
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_it_may_not_know(package: str) -> None:
    for path in (PACKAGE / package).glob("*.py"):
        known = {
            name
            for name in imports_of(path)
            if name.startswith(FORBIDDEN[package])
            and not name.startswith(f"netnsfs.{package}.")
        }
        assert known == set(), path


def test_every_module_is_in_a_package_or_beside_them() -> None:
    folders = {path.parent.relative_to(PACKAGE).name for path in PACKAGE.rglob("*.py")}
    assert folders == {"", *FORBIDDEN}


def test_the_command_line_needs_no_ctypes() -> None:
    reached: set[str] = set()
    todo = ["cli"]
    while todo:
        module = todo.pop()
        names = imports_of(PACKAGE / f"{module}.py")
        assert not any(name.split(".")[0] in ("ctypes", "pyfuse3", "trio") for name in names)
        ours = {name.split(".")[1] for name in names if name.startswith("netnsfs.")}
        todo += ours - reached
        reached |= ours
    assert reached == {"bpf_objects", "config", "node", "permissions"}


@pytest.mark.parametrize(
    "module",
    [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"],
    ids=lambda path: path.stem,
)
def test_a_module_has_a_test_file_of_its_name_or_a_folder_says_why_not(module: Path) -> None:
    told = "".join(folder.read_text() for folder in TESTS.glob("*/conftest.py"))
    assert [*TESTS.glob(f"*/test_{module.stem}.py")] or f"`{module.stem}`" in told
