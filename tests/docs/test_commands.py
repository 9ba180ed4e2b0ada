"""Every command that the guide shows is run, in its order, in a tiny real world (`stage`)."""

import sys
import urllib.request
from pathlib import Path

import commands
import pytest
from docs.guide import PAGES, ROOT, Block, blocks, name_of, tokens
from share import serving
from share.fake_hub import hub_for

import kdcache.methods
from docs import stage

FOLLOWS = {
    "docs/commands.md": "docs/index.md",
    "docs/evaluation.md": "docs/index.md",
    "docs/own_method.md": "docs/index.md",
    "docs/sharing.md": "docs/index.md",
    "docs/students.md": "docs/index.md",
    "docs/training_at_scale.md": "docs/index.md",
}
"""Pages that say that they go on from another."""

NOT_RUN = {
    "pip install": "installs",
    "kdcache demo": "takes minutes; tests/demo/test_run.py runs it, smaller",
    "torchrun": "starts processes of its own; tests/train/test_processes.py runs it",
    "ssh": "needs other machines",
    "sbatch": "needs a cluster",
    "srun": "needs a cluster",
    "ray": "needs a cluster; tests/extract runs it",
}
"""How commands begin that are not run, and why."""

WITH_CODE = [page for page in PAGES if any(b.commands() or b.is_python for b in blocks(page))]

pytestmark = [
    pytest.mark.slow,
    # huggingface_hub 2.4.0 itself sends large files in a way that its HTTP library deprecates.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

_left: dict[str, Path] = {}
"""The folders that pages have left, by name."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    (folder / "stage").mkdir()
    stage.build_stage(folder / "stage")
    _left.clear()
    return folder


@pytest.fixture
def servers(environment, monkeypatch, tmp_path):
    """An empty S3 server with the pages' buckets, and a hub with the weights of a tiny network."""
    reset = urllib.request.Request(f"{environment}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    for bucket in ("team", "bucket"):
        serving.make_bucket(environment, bucket)
    with hub_for(monkeypatch, tmp_path / "hf") as hub:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        stage.serve_weights(hub)
        yield


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_commands_of_the_page_run(page, root, servers, monkeypatch):
    play(page, root, monkeypatch)


def test_commands_are_really_run(root, servers, monkeypatch, tmp_path):
    """A page with a wrong option, a missing file or wrong Python fails."""
    for number, text in enumerate(
        (
            "```bash\nkdcache info --jsn r50.zarr\n```\n",
            "```\nkdcache info nowhere.zarr\n```\n",
            "```console\n$ kdcache published --method\n```\n",
            "```\nls | xargs kdcache info\n```\n",
            "```python\nimport timm\ntimm.create_model('resnet1')\n```\n",
        )
    ):
        page = tmp_path / f"{number}.md"
        page.write_text(text)
        monkeypatch.setattr("docs.guide.ROOT", tmp_path)
        with pytest.raises((AssertionError, RuntimeError)):
            play(page, root, monkeypatch)


def play(page: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page leaves, after those whose commands it goes on from."""
    name = name_of(page)
    if name in _left:
        return _left[name]
    folder = root / name.replace("/", "-")
    if name in FOLLOWS:
        stage.follow(play(ROOT / FOLLOWS[name], root, monkeypatch), folder)
    else:
        stage.enter_stage(root / "stage", folder)
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    with serving.running(serving.Static, root=folder / "public", seen=[]) as (http, _):
        for block in blocks(page):
            run_block(block, folder, http, monkeypatch)
    for module in set(sys.modules) - before:  # the page's own: my_teacher, a method
        if str(folder) in str(getattr(sys.modules[module], "__file__", None)):
            del sys.modules[module]
    _left[name] = folder
    return folder


def run_block(block: Block, folder: Path, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.is_python:
        run_python(block, folder, monkeypatch)
    for command in block.commands():
        if any(command.startswith(f"{start} ") or command == start for start in NOT_RUN):
            continue
        words = tokens(command)
        assert words[0] == "kdcache", f"neither run nor in NOT_RUN: {command}"
        addresses = {
            "http": http,
            "identity": stage.identity_of(folder / "r50.zarr"),
            "configs": str(ROOT / "configs"),
        }
        words = stage.staged(words, addresses)
        done = commands.kdcache(*words[1:])
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"$ {command}\nrun as: {' '.join(words)}\n{said}"


def run_python(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = block.text
    for shown, instead in stage.PYTHON.items():
        text = text.replace(shown, instead)
    if block.title:
        (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.title).write_text(text)
        if block.title.startswith("kdcache/methods/"):
            path = [*kdcache.methods.__path__, str(folder / "kdcache/methods")]
            monkeypatch.setattr(kdcache.methods, "__path__", path)
        return
    with monkeypatch.context() as here:
        here.syspath_prepend(str(folder))
        exec(compile(text, "a block of the page", "exec"), {"__name__": "__main__"})
