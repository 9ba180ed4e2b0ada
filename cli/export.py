"""`kdcache export`: the student, in the forms that other programs load."""

from pathlib import Path
from typing import Annotated

import typer

from kdcache.errors import ConfigError

from ._options import say


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
    to_hub: Annotated[
        str | None,
        typer.Option(
            "--to-hub",
            help="Put the folder on the Hugging Face Hub as well: hf://OWNER/NAME.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="A repository of the Hub that is made is for everyone."),
    ] = False,
) -> None:
    """Write a trained student for other programs, and check that each form gives the same features.

    A model card lies beside it. With --to-hub all of it becomes one commit of a model repository,
    and the name is printed by which `timm.create_model` loads this very student from there.
    """
    from kdcache.export import open_hub_model, run_export
    from kdcache.progress import progress_bar

    formats = form.split(",")
    if public and to_hub is None:
        raise ConfigError(
            "--public is given, but nothing goes to the Hub",
            hint="add --to-hub hf://OWNER/NAME, or leave --public out",
        )
    if to_hub is None:
        exported = run_export(run, out, formats, bar=progress_bar)
    else:
        if "timm" not in formats:
            raise ConfigError(
                f"--format `{form}` has no `timm`, which is what the Hub's users load",
                hint=f"--format timm,{form}, or leave --to-hub out",
            )
        place = open_hub_model(to_hub)  # no token: said before the work
        exported = run_export(run, out, formats, bar=progress_bar, where=f"hf-hub:{place.repo}")
    for line in exported.lines():
        typer.echo(line, err=True)
    if to_hub is not None:
        typer.echo(place.publish(exported, public=public, bar=progress_bar, tell=say))
