"""Optional packages: imported where they are used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Examples
    --------
    >>> require("json", extra="hub").loads("[1]")
    [1]
    >>> require("no_such_package", extra="hub")
    Traceback (most recent call last):
        ...
    ImportError: this needs the package 'no_such_package'; install it with: pip install -e ".[hub]" in the
    folder of your copy of deepSTRF (not by name: the package index holds another package called deepSTRF)
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".")[0]:
            raise  # the package is there but misses something of its own: do not hide that
        raise ImportError(
            f'this needs the package {package!r}; install it with: pip install -e ".[{extra}]" in the folder '
            "of your copy of deepSTRF (not by name: the package index holds another package called deepSTRF)"
        ) from error
