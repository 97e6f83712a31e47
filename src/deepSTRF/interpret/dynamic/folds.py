"""Which fit never saw which trial: names kept in a file, not positions in a list."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Fold", "FoldManifest"]

#: Version of the file.
FORMAT = 1
#: File names of the dynamic STRF page: ``model-all``, ``model-003``, ``model-003_007``.
PAGE_NAME = re.compile(r"model-(all|\d{3,}(?:_\d{3,})?)")


@dataclass(frozen=True)
class Fold:
    """One fit.

    Attributes
    ----------
    name : str
        Its name, from which files are called.
    left_out : tuple of str
        Trials it never saw.

    Examples
    --------
    >>> Fold("model-000", ("clip a",)).left_out
    ('clip a',)
    """

    name: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class FoldManifest:
    """All fits of a cross-validation or jackknife, and the trials they left out.

    Trials go by their names (or ``dataset.fingerprint(clip)``), so that a subset of them, or another order,
    can never pair a trial with a fit that saw it.

    Attributes
    ----------
    trials : tuple of str
        All trials.
    folds : tuple of Fold
        All fits.
    facts : dict
        Whatever else is to be remembered: seed, configuration, version.

    Examples
    --------
    >>> plan = FoldManifest.plan(["a", "b", "c"], crossval=True, jackknife=True)
    >>> [fold.name for fold in plan.eligible("b")]
    ['model-000_001', 'model-001_002']
    """

    trials: tuple[str, ...]
    folds: tuple[Fold, ...]
    facts: dict[str, Any]

    @classmethod
    def plan(
        cls, trials: Sequence[str], *, crossval: bool = False, jackknife: bool = False, **facts: Any
    ) -> FoldManifest:
        """Return the fits that are needed.

        Parameters
        ----------
        trials : sequence of str
            Names of all trials, each once.
        crossval, jackknife : bool
            Neither: one fit to all. One of them: a fit without each trial. Both: one without each pair, so
            that every trial has a jackknife of fits that never saw it.
        **facts
            To be remembered; plain data.

        Returns
        -------
        FoldManifest
            The plan.

        Raises
        ------
        ValueError
            For a name that occurs twice, or too few trials.
        """
        names = tuple(str(trial) for trial in trials)
        together = int(crossval) + int(jackknife)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"trials must have different names, these occur twice: {', '.join(twice)}")
        if len(names) < together + 1:
            raise ValueError(f"leaving out {together} of {len(names)} trials leaves none to fit")
        folds = [_fold(names, left) for left in itertools.combinations(range(len(names)), together)]
        return cls(names, tuple(folds), facts)

    @classmethod
    def from_names(cls, folder: str | os.PathLike[str], trials: Sequence[str]) -> FoldManifest:
        """Read the fits of a folder from file names of the dynamic STRF page.

        Parameters
        ----------
        folder : path
            Holds ``model-all.pt``, ``model-000.pt`` or ``model-000_001.pt`` and so on; any ending.
        trials : sequence of str
            Names of all trials, in the order in which they were fitted.

        Returns
        -------
        FoldManifest
            What is there.

        Raises
        ------
        FileNotFoundError
            For a folder without such files.
        ValueError
            For a number without a trial.
        """
        names, folds = tuple(str(trial) for trial in trials), []
        for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
            found = PAGE_NAME.fullmatch(path.stem)
            if found is None:
                continue
            places = [] if found[1] == "all" else [int(part) for part in found[1].split("_")]
            if any(place >= len(names) for place in places):
                raise ValueError(
                    f"{path.name} leaves out trial {max(places)}, but there are {len(names)} names"
                )
            folds.append(Fold(path.stem, tuple(names[place] for place in places)))
        if not folds:
            raise FileNotFoundError(f"{folder} holds no file called model-all, model-000 or model-000_001")
        return cls(names, tuple(folds), {})

    def eligible(self, trial: str) -> tuple[Fold, ...]:
        """Return the fits that never saw a trial.

        Parameters
        ----------
        trial : str
            Its name.

        Returns
        -------
        tuple of Fold
            At least one.

        Raises
        ------
        KeyError
            For a trial that is not in the manifest.
        ValueError
            When every fit saw it.
        """
        if trial not in self.trials:
            raise KeyError(f"there is no trial {trial!r} in this manifest; it has {', '.join(self.trials)}")
        unseen = tuple(fold for fold in self.folds if trial in fold.left_out)
        if not unseen:
            raise ValueError(
                f"every fit saw trial {trial!r}: plan them with crossval=True to score trials that are new"
            )
        return unseen

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the manifest as JSON; an older file stays until the new one is complete.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        pathlib.Path
            The file.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        folds = [{"name": fold.name, "left_out": list(fold.left_out)} for fold in self.folds]
        tree = {"format": FORMAT, "trials": list(self.trials), "folds": folds, "facts": self.facts}
        part.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        part.replace(target)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FoldManifest:
        """Read a manifest.

        Parameters
        ----------
        path : path
            What `save` wrote.

        Returns
        -------
        FoldManifest
            The manifest.

        Raises
        ------
        FileNotFoundError
            When there is no file.
        ValueError
            When it is no manifest.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            tree = json.loads(text)
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r} is not {FORMAT}")
            folds = tuple(Fold(fold["name"], tuple(fold["left_out"])) for fold in tree["folds"])
            return cls(tuple(tree["trials"]), folds, dict(tree["facts"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no fold manifest: {error}") from error


def _fold(names: tuple[str, ...], left: tuple[int, ...]) -> Fold:
    label = "_".join(f"{place:03d}" for place in left) or "all"
    return Fold(f"model-{label}", tuple(names[place] for place in left))
