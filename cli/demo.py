"""`kdcache demo`: all of it, on a laptop, without a download."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import DeviceOption, WorkersOption, num_workers, open_device, say


def demo(
    out: Annotated[Path, typer.Option(help="A folder for what is made.")] = Path("kdcache-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of patches, views and weights.")] = 0,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Images to evaluated students in minutes, on photographs that lie inside a wheel.

    A teacher is pretrained on the spot by self-supervision, its views are cached, and students
    are trained from the cache by each method there is.
    """
    from kdcache.demo import run_demo
    from kdcache.progress import progress_bar

    result = run_demo(
        out,
        seed=seed,
        device=open_device(device),
        workers=num_workers(workers),
        bar=progress_bar,
        tell=say,
    )
    for line in result.lines(out):
        typer.echo(line)
