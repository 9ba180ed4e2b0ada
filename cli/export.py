"""`kdcache export`: the student, in the forms that other programs load."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a student's file.")],
    out: Annotated[Path, typer.Option(help="The folder to make.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="By commas: timm (config.json and model.safetensors, as timm and the Hub have "
            "them), pth (state dict), onnx, pt2 (torch.export).",
        ),
    ] = "timm",
) -> None:
    """Write a trained student for other programs, and check that each form gives the same features.

    A model card lies beside it; the folder can be uploaded to the Hugging Face Hub as it is.
    """
    from kdcache.export import run_export
    from kdcache.progress import progress_bar

    exported = run_export(run, out, form.split(","), bar=progress_bar)
    for line in exported.lines():
        typer.echo(line, err=True)
