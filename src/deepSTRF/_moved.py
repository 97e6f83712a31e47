"""Old places of names and modules: one table, each entry warns once and leads to the new place.

An old module is made on import by `MovedModules`, which `deepSTRF` adds to the import system; an old name of
a face is looked up by the ``__getattr__`` of that face. Nothing in the package itself uses an old place.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MODULES", "NAMES", "MovedModules", "find_moved"]

#: Old module -> modules that now hold its names.
MODULES: dict[str, tuple[str, ...]] = {
    "deepSTRF.dsp.scan": ("deepSTRF.dsp.recursion",),
    "deepSTRF.interpret.dynamic": ("deepSTRF.interpret.dstrf", "deepSTRF.interpret.filter_statistics"),
    "deepSTRF.models.converters": ("deepSTRF.models.io.legacy",),
    "deepSTRF.training.caching": ("deepSTRF.training.cache",),
    "deepSTRF.training.closed_form": ("deepSTRF.experiments.build",),
    "deepSTRF.training.experiment": ("deepSTRF.experiments",),
    "deepSTRF.training.run_folder": ("deepSTRF.experiments.run_folder",),
}

#: (face, old name) -> (face, new name).
NAMES: dict[tuple[str, str], tuple[str, str]] = {
    ("deepSTRF.training", "ExperimentConfig"): ("deepSTRF.experiments", "ExperimentConfig"),
    ("deepSTRF.training", "Run"): ("deepSTRF.experiments", "Run"),
    ("deepSTRF.training", "run_experiment"): ("deepSTRF.experiments", "run_experiment"),
    ("deepSTRF.training", "RidgeFit"): ("deepSTRF.baselines", "RidgeFit"),
    ("deepSTRF.training", "fit_ridge"): ("deepSTRF.baselines", "fit_ridge"),
    ("deepSTRF.training", "start_from_ridge"): ("deepSTRF.baselines", "start_from_ridge"),
    ("deepSTRF.training", "FoldFits"): ("deepSTRF.crossval", "FoldFits"),
    ("deepSTRF.training", "dynamic_strf_settings"): ("deepSTRF.crossval", "dynamic_strf_settings"),
    ("deepSTRF.training", "fit_folds"): ("deepSTRF.crossval", "fit_folds"),
    ("deepSTRF.training", "predict_folds"): ("deepSTRF.crossval", "predict_folds"),
    ("deepSTRF.training", "score_folds"): ("deepSTRF.crossval", "score_folds"),
}


def find_moved(face: str, name: str) -> Any:
    """Value of a name that left a face, with a DeprecationWarning; AttributeError for any other name.

    The face keeps the value, so that a name warns once.
    """
    if (face, name) not in NAMES:
        raise AttributeError(f"module {face!r} has no attribute {name!r}")
    new_face, new_name = NAMES[face, name]
    warnings.warn(
        f"{face}.{name} is now {new_face}.{new_name}: from {new_face} import {new_name}",
        DeprecationWarning,
        stacklevel=3,
    )
    value = getattr(importlib.import_module(new_face), new_name)
    setattr(importlib.import_module(face), name, value)
    return value


class MovedModules(MetaPathFinder, Loader):
    """Import hook for the old modules of `MODULES`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Specification of an old module; None for every other one."""
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill an old module with the names of the new ones."""
        places = MODULES[module.__name__]
        warnings.warn(
            f"the module {module.__name__} is now {' and '.join(places)}", DeprecationWarning, stacklevel=2
        )
        for place in reversed(places):
            new = importlib.import_module(place)
            names = {*new.__all__, *(name for name in vars(new) if name[:1] != "_")}  # a face may load on use
            module.__dict__.update({name: getattr(new, name) for name in names})
