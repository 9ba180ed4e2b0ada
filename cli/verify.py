"""`kdcache verify`: is a cache what its manifest promises?"""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    cache: Annotated[Path, typer.Argument(help="A cache.", show_default=False)],
) -> None:
    """Read every file of a cache and compare it with the manifest; exit code 1 if one differs."""
    from kdcache.progress import progress_bar
    from kdcache.store import check_digests, read_manifest

    manifest, _ = read_manifest(cache)
    total = len(manifest.files)
    with progress_bar("verify", total=total, unit="files") as progress:
        problems = check_digests(cache, progress)
    for problem in problems:
        typer.echo(f"{problem.file} {problem.found}")
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{total} files are as promised", err=True)
