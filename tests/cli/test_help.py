"""Help answers at once."""

import subprocess
import sys

CODE = """
import sys
from kdcache_cli.main import main
sys.argv = ["kdcache", "--help"]
try:
    main()
finally:
    heavy = {"rich", "torch", "timm", "numpy", "zarr", "pydantic"}
    print("imported:", *sorted(heavy & set(sys.modules)))
"""


def test_help_imports_nothing_that_takes_long():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert "plan" in done.stdout
    assert done.stdout.rstrip().endswith("imported:")
