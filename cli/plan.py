"""`kdcache plan`: what an extraction will cost, and when it pays."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdcache.errors import ConfigError

from ._options import (
    ArraysOption,
    BatchSizeOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    ViewsOption,
    WorkersOption,
    array_names,
    num_workers,
    open_device,
)

if TYPE_CHECKING:
    import torch

    from kdcache.plan import Question, Rates
    from kdcache.recipe import Recipe


def plan(
    teacher: Annotated[
        str,
        typer.Option(
            help="As for `kdcache extract`; nothing is downloaded, for its weights do not matter.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="The images, of which some are measured on. With --images: some like them.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="How many images there will be: 1e9.", show_default="those of --data"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the teacher, for the head in it.", show_default="random"),
    ] = None,
    views: ViewsOption = 10,
    policy: Annotated[
        str | None,
        typer.Option(help="How views are drawn.", show_default="the method's, or weak"),
    ] = None,
    image_size: ImageSizeOption = None,
    arrays: ArraysOption = None,
    dtype: Annotated[
        Literal["float16", "float32", "uint8"], typer.Option(help="Of what is kept.")
    ] = "float16",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of the teacher.")
    ] = "auto",
    batch_size: BatchSizeOption = 64,
    method: Annotated[str | None, typer.Option(help="What a student is to learn by.")] = None,
    student: Annotated[str | None, typer.Option(help="A timm model, such as resnet18.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the student.", show_default="the method's")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe: see configs/.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="table.key=value of the recipe; may be repeated."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that extract.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs in each of them.")] = 1,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of an hour of a GPU, in any currency.")
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option(
            help="A file of rates (docs/plan.md) instead of measuring.", show_default="measured"
        ),
    ] = None,
    save_rates: Annotated[
        Path | None, typer.Option(help="Write the rates that were measured to this file.")
    ] = None,
    disk: Annotated[
        Path, typer.Option(help="A folder on the disk of the cache; 128 MB are written to it.")
    ] = Path(),
    as_json: JsonOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Tell bytes, hours and the epoch after which a cache pays, before anything is extracted.

    Bytes and files follow from the format. Times follow from rates, which are measured on this
    machine in a minute or so, on some of the images, or given by --rates.
    """
    from kdcache.extract import Extraction
    from kdcache.images import open_images
    from kdcache.plan import Machines, ask, make_plan
    from kdcache.plan import save_rates as save
    from kdcache.teachers import sketch_teacher

    recipe = _recipe(config, method, student, epochs, override)
    own = "weak" if recipe is None else recipe.run.policy or recipe.method_class.views
    place = open_device(device)
    if rates is not None and save_rates is not None:
        raise ConfigError("--rates and --save-rates are both given", hint="leave one of them out")
    question = ask(
        None if data is None else open_images(data),
        sketch_teacher(teacher, weights=weights, image_size=image_size),
        Extraction(
            num_views=views,
            policy=policy or own,
            arrays=array_names(arrays),
            dtype=dtype,
            precision=precision,
            batch_size=batch_size,
        ),
        num_images=None if images is None else parse_count("--images", images),
        device=place,
        student=recipe,
    )
    found = _given(question, rates) if rates is not None else _measured(question, place, disk)
    if save_rates is not None:
        save(save_rates, found)
    if gpus > 1 and found.device == "cpu":
        raise ConfigError(
            f"--gpus `{gpus}` is given, but the rates are those of a CPU",
            hint="measure on a GPU (--device cuda), or give rates of one: --rates FILE",
        )
    answer = make_plan(question, found, Machines(nodes, gpus, num_workers(workers)), price=price)
    typer.echo(json.dumps(answer.to_dict(), indent=2) if as_json else "\n".join(answer.lines()))


def parse_count(option: str, text: str) -> int:
    """A whole number that may be written as 1e9 or 1_000_000."""
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if number < 1 or number != int(number):
        raise ConfigError(f"`{option} {text}` is no number of images", hint=f"{option} 1e6")
    return int(number)


def _recipe(
    config: Path | None,
    method: str | None,
    student: str | None,
    epochs: int | None,
    override: list[str] | None,
) -> "Recipe | None":
    """The student's recipe, if one is asked about."""
    from kdcache.recipe import load_recipe

    given = {"--student": student, "--epochs": epochs, "--set": override}
    if config is None and method is None:
        useless = [name for name, value in given.items() if value]
        if useless:
            raise ConfigError(
                f"{useless[0]} is given, but no --method", hint="add --method simreg, or --config"
            )
        return None
    overrides = [*(override or ()), *([f"train.epochs={epochs}"] if epochs else [])]
    return load_recipe(config, method=method, student=student, overrides=overrides)


def _given(question: "Question", path: Path) -> "Rates":
    from kdcache.plan import check_about, load_rates

    rates = load_rates(path)
    check_about(rates, question.about())
    return rates


def _measured(question: "Question", device: "torch.device", disk: Path) -> "Rates":
    from kdcache.cores import available_cores
    from kdcache.plan import measure
    from kdcache.progress import progress_bar

    if not len(question.job.images):
        raise ConfigError(
            "without --data there are no images to measure on",
            hint="add --data with some images like them, or --rates FILE",
        )
    return measure(
        question,
        device=device,
        cores=available_cores(),
        machine=_machine(device),
        disk=disk,
        bar=progress_bar,
    )


def _machine(device: "torch.device") -> str:
    """This machine in words."""
    import platform

    import torch

    if device.type == "cuda":
        return f"measured here on {torch.cuda.get_device_name(device)}"
    return f"measured here on a CPU ({platform.processor() or platform.machine()})"
