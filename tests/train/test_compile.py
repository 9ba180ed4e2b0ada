"""`run.compile`: the student runs through torch.compile, and learns and resumes as without it."""

import shutil
import subprocess
import sys

import pytest
from small import make_cache, recipe_for, run

from kdcache.students import load_student
from kdcache.train import read_metrics

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small import recipe_for, run
import torch._dynamo.utils as dynamo
tables = {"train": {"epochs": 1, "lr": 1e-4}, "run": {"compile": True}}
run(recipe_for("disco", **tables), *map(Path, sys.argv[2:]))
assert dynamo.counters["stats"]["unique_graphs"] > 0, dynamo.counters
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_student_learns_what_a_plain_one_does(tiny_images, tiny_weights, tmp_path):
    """In a process of its own, without checks of shapes, which the compiler would trace."""
    make_cache(tiny_images, tiny_weights, tmp_path / "c")
    here = __file__.rsplit("/", 2)[0]
    arguments = [here, tiny_images, tmp_path / "compiled", tmp_path / "c"]
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recipe = recipe_for("disco", train={"epochs": 1, "lr": 1e-4})
    run(recipe, tiny_images, tmp_path / "plain", tmp_path / "c")
    compiled, plain = (
        [record["loss"] for record in read_metrics(tmp_path / name)]
        for name in ("compiled", "plain")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert load_student(tmp_path / "compiled" / "student.safetensors").name == "test_resnet"
