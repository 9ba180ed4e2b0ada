"""The recipes that ship: they load, differ only where they say so, and cite figures correctly."""

import re
import tomllib
from pathlib import Path

import pytest

from kdcache.published import published, published_figure
from kdcache.recipe import build_recipe, load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.rglob("*.toml"))
CITED = re.compile(r"^#   (?P<value>[\d.]+)  (?P<key>\S+)(?P<mark>  UNVERIFIED)?$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def cited_in(path: Path) -> list[tuple[float, str, bool]]:
    """Value, key and mark of each figure in a recipe's header."""
    return [
        (float(found["value"]), found["key"], found["mark"] is not None)
        for found in CITED.finditer(path.read_text())
    ]


def rows_of_readme() -> dict[str, dict[str, str]]:
    """The cells of the README's tables: of each recipe, by the head of the column."""
    rows: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in (CONFIGS / "README.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| recipe"):
            head = cells
        elif line.startswith("| `"):
            assert cells[0] not in rows, f"{cells[0]} is listed twice"
            rows[cells[0]] = dict(zip(head, cells, strict=True))
    return rows


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_loads_and_lies_in_its_methods_folder(path):
    recipe = load_recipe(path)
    assert build_recipe(recipe.to_dict()) == recipe
    assert recipe.method == path.parent.name
    assert path.stem == recipe.student.name or path.stem.startswith(f"{recipe.student.name}_")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_sets_only_what_differs_and_says_where_it_was_read(path):
    written = tomllib.loads(path.read_text())
    recipe = load_recipe(path)
    usual = load_recipe(method=recipe.method, student=recipe.student.name).to_dict()
    for table, settings in written.items():
        for key, value in settings.items():
            if key == "name":
                continue
            assert value != usual[table][key], f"{table}.{key} is the default"
            assert re.search(rf"^{key} = .*  # \S", path.read_text(), re.MULTILINE), key
    assert re.match(r"# .*\n# Source: ", path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_figures_in_the_header_are_the_registrys(path):
    recipe = load_recipe(path)
    cited = cited_in(path)
    for value, key, marked in cited:
        figure = published_figure(key)
        assert (figure.method, figure.student) == (recipe.method, recipe.student.name)
        assert value == figure.value
        assert marked != figure.verified, key
        assert figure.epochs in (None, recipe.train.epochs)
    assert cited or "no figure is known" in path.read_text()


def test_readme_lists_every_recipe_and_no_other():
    assert set(rows_of_readme()) == {name_of(path) for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_readme_gives_the_figures_of_the_recipe(path):
    row = dict(rows_of_readme()[name_of(path)])
    del row["recipe"]
    read_in = row.pop("read in")
    assert re.fullmatch(r"(> )?\d+", row.pop("GPU-hours"))
    wanted, evidence = {}, set()
    for value, key, marked in cited_in(path):
        figure = published_figure(key)
        teacher = figure.teacher.name if figure.teacher else "alone"
        wanted[teacher] = f"{value}{' ?' if marked else ''}"
        evidence.add(figure.evidence)
    assert {teacher: cell for teacher, cell in row.items() if cell != "-"} == wanted
    words = {"official code or README": "README", "official table image": "table image"}
    for kind in evidence:
        assert words.get(kind, kind) in read_in
    assert ("UNVERIFIED" in read_in) == ("memory" in evidence)


def test_every_method_of_the_papers_has_recipes():
    folders = {path.parent.name for path in RECIPES}
    assert folders == {
        "bingo", "compress", "compress_1q", "disco", "moco", "retro", "seed", "simreg",
    }  # fmt: skip


def test_every_published_linear_figure_of_seed_has_its_recipe():
    """The main table is complete: each student and teacher of the paper is somewhere in here."""
    cited = {key for path in RECIPES for _, key, _ in cited_in(path)}
    pairs = {(f.student, f.teacher and f.teacher.name) for f in map(published_figure, cited)}
    for figure in published("seed", metric="linear"):
        if figure.student != "resnet50":  # its schedule is not known
            assert (figure.student, figure.teacher and figure.teacher.name) in pairs
