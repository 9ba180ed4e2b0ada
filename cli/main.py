"""The table of commands, and how their errors look."""

import errno
import os
import sys

import typer

from kdcache import __version__
from kdcache.errors import KdcacheError

from . import (
    card,
    demo,
    evaluate,
    export,
    extend,
    extract,
    head,
    info,
    neighbours,
    plan,
    pull,
    push,
    report,
    shelves,
    teachers,
    train,
    verify,
)

# Plain help: the library that would draw boxes takes longer to import than all the rest.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_NO_ANSWER = {"verify": 3}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdcache {__version__}")
        raise typer.Exit


@app.callback()
def kdcache(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True),
) -> None:
    """Pay for the teacher once: cache what it says of many views, distil any number of students.

    An error is two lines: what was found, and what to do. KDCACHE_DEBUG=1 adds the traceback.
    """


app.command("plan")(plan.plan)
app.command("extract")(extract.extract)
app.command("extend")(extend.extend)
app.command("head")(head.head)
app.command("neighbours")(neighbours.neighbours)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("info")(info.info)
app.command("verify")(verify.verify)
app.command("push")(push.push)
app.command("pull")(pull.pull)
app.command("card")(card.card)
app.command("demo")(demo.demo)
app.command("methods")(shelves.methods)
app.command("policies")(shelves.policies)
app.command("protocols")(shelves.protocols)
app.command("published")(shelves.published)
app.command("students")(shelves.students)
app.add_typer(teachers.app, name="teachers")


def main() -> None:
    """Run the command line; what the user can mend is two lines on standard error, exit code 1.

    A command that answers a question by its exit code has another one for having no answer.
    """
    debug = os.environ.get("KDCACHE_DEBUG", "") not in ("", "0")
    try:
        app(prog_name="kdcache")
    except KdcacheError as error:
        if debug:
            raise
        _fail(str(error), error.hint)
    except OSError as error:
        if debug:
            raise
        _fail(*_explain(error))


def _fail(message: str, hint: str) -> None:
    typer.echo(f"error: {message}\n\nhint: {hint}", err=True)
    sys.exit(_NO_ANSWER.get(next(iter(sys.argv[1:]), ""), 1))


def _explain(error: OSError) -> tuple[str, str]:
    """Words for trouble with a disk, which any file may meet at any time."""
    what = error.strerror or str(error)
    where = f"`{error.filename}`: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where}{what.lower()}; nothing that was finished is lost",
            "free some space and run the same command again: it goes on where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where}{what.lower()}",
            "choose a place that you may write to, or change its rights",
        )
    return f"{where}{what.lower()}", "see that the path is right and the disk is there"
