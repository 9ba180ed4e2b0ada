"""The guide is whole: its links lead somewhere, and it knows every command, option and method."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from docs.guide import PAGES, ROOT, blocks, name_of, spans, tokens
from kdcache_cli.main import app

from kdcache.evals import available_protocols, get_protocol
from kdcache.methods import available_methods, get_method
from kdcache.published import published

FOREIGN = {"--max-restarts", "--nnodes", "--nproc-per-node", "--requeue", "--version"}
"""Options that the text names and that are no command's."""

GUIDE = [page for page in PAGES if page.parent == ROOT / "docs"]


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'kdcache[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_all_pages_are_built_and_all_links_and_anchors_lead_somewhere(site):
    assert {page.stem for page in GUIDE} <= {page.stem for page in site.glob("*.html")}
    assert "The arrays of targets" in (site / "format.html").read_text()
    assert "GPU-hours" in (site / "recipes.html").read_text()


@pytest.mark.slow
def test_a_wrong_link_or_anchor_or_page_outside_of_the_menu_is_noticed(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'kdcache[docs]'")
    (tmp_path / "docs").mkdir()
    config = (ROOT / "mkdocs.yml").read_text()
    start = config.index("nav:")
    (tmp_path / "mkdocs.yml").write_text(config[:start].replace("strict: true\n", ""))
    links = "[a](absent.md) [b](#absent)"
    (tmp_path / "docs/index.md").write_text(f"# Hello\n\n{links}\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "absent.md" in done.stderr
    assert "#absent" in done.stderr


@pytest.mark.slow
def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?([^\"' >]+)"
            r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|pre|icon))[^>]*href=[\"']?([^\"' >]+)",
            page.read_text(),
        )
        found = [address for pair in loaded for address in pair if address]
        assert found
        assert not [address for address in found if "//" in address], page
        assert 'class="mermaid"' not in page.read_text(), "its script would be fetched"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\"' ]*(https?:)?//", sheet.read_text()), sheet


def commands() -> dict[str, typer.core.TyperCommand]:
    """All commands by their words: `extract`, `teachers check`."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        found[name] = command
        for sub, own in getattr(command, "commands", {}).items():
            found[f"{name} {sub}"] = own
    return found


def options_of(words: list[str]) -> set[str]:
    known = commands()
    name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    assert name in known, f"no command `{words[0]}`"
    return {option for parameter in known[name].params for option in parameter.opts} | {"--help"}


def test_every_command_has_a_section():
    heads = " ".join(re.findall(r"^### (.*)$", text_of("commands.md"), re.MULTILINE))
    for name in commands():
        assert re.search(rf"\b{name.split()[0]}\b", heads), f"`kdcache {name}` has no section"
    for name in re.findall(r"`(?:kdcache )?(\w+)`", heads):
        assert name in commands(), f"there is no command `{name}`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_running_text_exist(page):
    """Those of blocks are run; here are `kdcache train --set ...` and `--set` alone."""
    every = {o for command in commands().values() for p in command.params for o in p.opts}
    for span in spans(page):
        if re.match(r"kdcache [a-z]", span):
            words = span.split()[1:]
            used = {word.split("=")[0] for word in words if re.match(r"--\w", word)}
            assert used <= options_of(words), span
        elif re.match(r"--[a-z]", span):
            assert span.split()[0].split("=")[0] in every | FOREIGN, span


def test_options_of_the_text_are_really_looked_at():
    assert "--views" in options_of(["extract", "--views", "3"])
    assert "--images" in options_of(["teachers", "check"])
    assert "--vues" not in options_of(["extract"])
    assert spans(ROOT / "README.md")


def test_every_method_has_a_section_and_a_row():
    text = text_of("methods.md")
    heads = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)
    rows = re.findall(r"^\| \[`(\w+)`\]\(#\w+\) ", text, re.MULTILINE)
    assert sorted(heads) == sorted(rows) == available_methods()


def test_table_of_methods_says_what_the_methods_need():
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(#\w+\) \| ([^;|]*); `(\w+)` \| \d", text_of("methods.md"), re.M
    )
    assert len(rows) == len(available_methods())
    for name, holds, policy in rows:
        method = get_method(name)
        needs = method.needs(method.Config())
        assert policy == method.views
        assert holds.split(",")[0] == (needs.target or "nothing"), name
        assert ("2 views" in holds) == (needs.target is not None and needs.views == 2), name
        assert ("head" in holds) == needs.head, name
        assert ("graph" in holds) == bool(needs.neighbours), name


def test_figures_in_the_table_of_methods_are_the_registrys():
    for line in text_of("methods.md").splitlines():
        if (row := re.match(r"\| \[`(\w+)`\]", line)) is None:
            continue
        for figure in re.findall(r"\b\d\d\.\d\b", line):
            known = published(row[1], metric="linear")
            assert float(figure) in {f.value for f in known if f.verified}, line


def test_number_of_published_figures_is_right():
    assert f"All {len(published())} with their" in text_of("methods.md")


def test_every_protocol_is_in_the_guide_and_no_other():
    text = text_of("evaluation.md")
    known = {
        f"{family}:{name}" if name else family
        for family in available_protocols()
        for name in get_protocol(family).presets
    }
    named = set(re.findall(r"`((?:[a-z]+-)?[a-z]+(?::[a-z0-9-]+)?)`", text))
    assert known <= named, known - named
    families = {name.partition(":")[0] for name in known}
    assert {name for name in named if ":" in name and name.partition(":")[0] in families} <= known


def test_arithmetic_of_the_imagenet_page_is_right():
    """Each row `arithmetic | number` is worked out again."""
    rows = re.findall(r"^\| .*? \| ([\d,. xGT/()+]+) \| ([\d.]+) \|$", text_of("imagenet.md"), re.M)
    assert len(rows) == 7
    for sum_, shown in rows:
        in_bytes = "G" not in sum_
        python = sum_.replace(",", "").replace("x", "*").replace("G", "*1e9").replace("T", "*1e12")
        python = python.replace("/ 1.96 *1e12", "/ 1.96e12")
        value = eval(python, {}) / (1e9 if in_bytes else 3600)
        digits = len(shown.partition(".")[2])
        assert round(value, digits) == float(shown), (sum_, value)


def test_every_block_of_commands_says_that_it_is_one_or_what_else():
    """A fence of another language cannot hide a command from the test that runs them."""
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("", "bash", "console", "sh", "shell"):
                lines = [line for line in block.text.splitlines() if line.startswith("kdcache ")]
                assert not lines, name_of(page)
            for command in block.commands():
                assert tokens(command), name_of(page)
