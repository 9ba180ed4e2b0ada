"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(ROOT.glob("kdcache/**/*.py"))
COMMANDS = sorted(ROOT.glob("cli/*.py"))
SOURCES = [*LIBRARY, *COMMANDS]

# A room imports from the floors below its own, and from itself; never from a neighbour.
FLOORS = [
    {"errors", "shapes", "table", "precision"},
    {
        "objects",
        "files",
        "settings",
        "progress",
        "versions",
        "workers",
        "distributed",
        "nearest",
        "published",
    },
    {"heads", "optimisation", "images"},
    {"networks", "views", "store"},
    {"teachers", "students", "methods", "targets"},
    {"extract", "recipe", "derive"},
    {"share"},
    {"train", "evals", "verify"},
    {"demo", "export", "plan", "report"},
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def floor_of(room: str) -> int:
    floors = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"the room `{room}` has no floor: give it one in {__file__}"
    return floors[0]


def imports(path: Path) -> list[str]:
    """Names of our own modules that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kdcache":
            found += [f"kdcache.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] in {"kdcache", "kdcache_cli", "cli"}]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_data_flows_one_way(path):
    here = path.relative_to(ROOT / "kdcache").with_suffix("").parts[0]
    if here == "__init__":
        return
    for name in imports(path):
        assert name.startswith("kdcache"), f"{path} imports {name}: the library never sees the CLI"
        there = name.split(".")[1] if "." in name else None
        if there in (None, "__version__", here):
            continue
        assert floor_of(there) < floor_of(here), f"{path} imports {name}, which is not upstream"


def test_direction_of_imports_is_really_looked_at(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from kdcache.train import run\n    import kdcache_cli.main\n")
    assert imports(wrong) == ["kdcache.train", "kdcache_cli.main"]
    assert floor_of("train") > floor_of("store")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path}: no module docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}: no docstring"


@pytest.mark.parametrize("path", sorted(ROOT.glob("kdcache/*/__init__.py")), ids=name_of)
def test_public_names_are_sorted(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
            upper = [n for n in names if n.isupper()]
            others = [n for n in names if not n.isupper()]
            kinds = [n for n in others if n[0].isupper()], [n for n in others if n[0].islower()]
            assert names == [*sorted(upper), *sorted(kinds[0]), *sorted(kinds[1])]
            return
    raise AssertionError(f"{path} has no __all__")


def test_command_line_starts_without_heavy_imports():
    heavy = {"torch", "timm", "faiss", "ray", "zarr", "numpy", "cv2", "pydantic", "obstore"}
    code = f"import sys, kdcache_cli.main; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_subpackage_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY}
    assert set(listed) - {"kdcache_cli"} == there


def test_nothing_names_this_machine_or_a_registry():
    """Addresses and paths of one machine do not belong into a repository."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout, so what is tracked is not known")
    words = ("/root/", "/work/", "pypi.org", "index-url")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        for word in words:
            assert word not in text, f"{name} names `{word}`"
