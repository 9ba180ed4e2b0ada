"""The demo: the whole way, on photographs that lie inside a wheel."""

from kdcache.demo.run import run_demo

__all__ = ["run_demo"]
