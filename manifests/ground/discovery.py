"""Finding what registers itself: methods, teacher families, metrics, image formats."""

import functools
import importlib
import importlib.metadata
import pkgutil

from hkdpipe.manifests.ground.errors import UsageError, first_line

PLUGINS = "hkdpipe.plugins"
"""Entry points of installed packages: modules that register what they add when they are imported."""


@functools.cache
def discover(package: str) -> None:
    """Import what lies directly in a package, and the plug-ins: what registers itself there is known then."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    _import_plugins()


@functools.cache
def _import_plugins() -> None:
    for plugin in importlib.metadata.entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # whatever somebody else's module raises
            raise UsageError(f"plug-in '{plugin.value}': cannot be imported ({first_line(error)})") from error
