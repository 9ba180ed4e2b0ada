"""Commands as a user types them, run in this process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest
from kdcache_cli.main import main


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def kdcache(*arguments) -> Done:
    """Run a command through `main`, errors and exit code included."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patched.setattr(sys, "argv", ["kdcache", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return Done(code, stdout.getvalue(), stderr.getvalue())


def refused(done, message, hint) -> None:
    """An error is two lines, says what was found and what to do, and exits with 1."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    error, _, advice = done.stderr[done.stderr.index("error: ") :].partition("\n\nhint: ")
    assert message in error, done.stderr
    assert hint in advice, done.stderr
