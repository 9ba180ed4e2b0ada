"""`kdcache methods` and `kdcache policies`: what there is."""

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
        numbers = ", ".join(f"{k} {v}" for k, v in policy.items() if k != "name")
        typer.echo(f"{name:10} {numbers}")
