"""`kdcache methods`, `policies`, `protocols`, `students` and `published`: what there is."""

from typing import Annotated

import typer


def methods() -> None:
    """The methods, one a line: name, what it does, the policy of its views."""
    import sys

    from kdcache.methods import available_methods, get_method

    for name in available_methods():
        method = get_method(name)
        about = (sys.modules[method.__module__].__doc__ or "").splitlines()[0]
        typer.echo(f"{name:10} {about}  [views: {method.views}]")


def policies() -> None:
    """The view policies, one a line, with their numbers."""
    from kdcache.views import available_policies, get_policy

    for name in available_policies():
        policy = get_policy(name).to_dict()
        small = policy.pop("small", {})
        table = policy | {f"small.{key}": value for key, value in small.items()}
        numbers = ", ".join(f"{k} {v}" for k, v in table.items() if k != "name")
        typer.echo(f"{name:10} {numbers}")


def protocols() -> None:
    """The protocols of `kdcache eval`, each with what it does, and its presets with their source.

    The settings, which `--set` can change, are shown where they are not zero.
    """
    from kdcache.evals import about_protocol, available_protocols, get_protocol

    for family in available_protocols():
        typer.echo(about_protocol(family))
        for name, preset in get_protocol(family).presets.items():
            settings = [(k, v) for k, v in preset.config.model_dump().items() if v]
            typer.echo(f"  {f'{family}:{name}' if name else family:27} {preset.source}")
            typer.echo(f"  {'':27} {', '.join(f'{k}={v}' for k, v in settings)}")


def students() -> None:
    """The papers' students, one a line: width, parameters, what the feature is."""
    from kdcache.students import PAPER_STUDENTS, build_student

    for name, feature in PAPER_STUDENTS.items():
        student = build_student(name, image_size=224)
        parameters = sum(weight.numel() for weight in student.parameters())
        typer.echo(f"{name:22} {student.feature_dim:5} {parameters:11,}  {feature}")
    typer.echo(
        "any other model of timm, found by `python -c 'import timm; print(timm.list_models())'`"
    )


def published(
    method: Annotated[str | None, typer.Option(help="Of this method only.")] = None,
    student: Annotated[str | None, typer.Option(help="Of this student only: timm's name.")] = None,
) -> None:
    """Figures that others report, in % on ImageNet-1k, and where each was read.

    None of them was measured here. UNVERIFIED ones are recalled: look them up before citing them.
    """
    from kdcache.published import published as figures

    for figure in figures(method, student):
        mark = "" if figure.verified else "UNVERIFIED  "
        preset = f"preset {figure.preset}; " if figure.preset else ""
        note = f" ({figure.note})" if figure.note else ""
        typer.echo(f"{figure.value:5.2f}  {figure.key}  {mark}[{preset}{figure.source}]{note}")
