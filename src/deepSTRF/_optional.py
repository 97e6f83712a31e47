"""Optional packages: imported where they are used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package; where it is missing, the error names it and the extra that installs it.

    Examples
    --------
    >>> require("json", extra="hub").loads("[1]")
    [1]
    >>> require("no_such_package", extra="hub")
    Traceback (most recent call last):
        ...
    ImportError: this needs the package 'no_such_package'; install it with: pip install no_such_package, or
    pip install -e ".[hub]" in the folder of your copy of deepSTRF (not by its name: the package index holds
    another package called deepSTRF)
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".")[0]:
            raise  # the package is installed, and something that it needs is missing
        raise ImportError(
            f"this needs the package {package!r}; install it with: pip install {package}, or pip install -e "
            f'".[{extra}]" in the folder of your copy of deepSTRF (not by its name: the package index holds '
            "another package called deepSTRF)"
        ) from error
