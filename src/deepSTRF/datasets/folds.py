"""Fold manifests: the fits of a cross-validation or jackknife and the trials that each left out.

Trials are matched by the hash of their sound, not by position in a list, so a subset of the clips, another
order or another name cannot pair a trial with a fit that was trained on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepSTRF._files import naming_damage, read_json, warn_unsealed, write_sealed_json
from deepSTRF._validation import checked, checked_but
from deepSTRF.datasets.dataset import NeuralDataset
from deepSTRF.datasets.splits import same_sounds, shuffled

__all__ = ["Fold", "FoldManifest", "plan_folds"]

#: Version of the file; the first had no checksum.
FORMAT, UNSEALED_FORMAT = 2, 1
#: What to do with a damaged manifest.
REMEDY = "take it from a backup, or fit into another folder"
#: Longest name of a fit in bytes; files with endings are named after it.
LONGEST_NAME = 200
#: Names that Windows keeps for devices.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", flags=re.IGNORECASE)
#: File names of the dynamic STRF page: ``model-all``, ``model-003``, ``model-003_007``.
PAGE_NAME = re.compile(r"model-(all|\d{3,}(?:_\d{3,})?)")


@dataclass(frozen=True)
class Fold:
    """One fit of a manifest; its name is that of a folder, so it is one plain part of a path."""

    name: str  # stem of its files
    left_out: tuple[str, ...]  # trials it was not trained on

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str):
            raise TypeError(f"the name of a fold must be text, got {name!r:.80}")
        if (
            not name
            or not name.isprintable()  # which no separator of lines, control or lone surrogate is
            or set(name) & set('/\\:*?"<>|')
            or name[0] in ". "
            or name[-1] in ". "
            or len(name.encode()) > LONGEST_NAME
            or _DEVICE.fullmatch(name)
        ):
            raise ValueError(
                f"the name of a fold must be one plain part of a path, such as model-003, got {name!r:.80}"
            )
        if not isinstance(self.left_out, tuple) or not all(isinstance(one, str) for one in self.left_out):
            raise TypeError(f"left_out of {name!r} must be a tuple of names, got {self.left_out!r:.80}")


@checked
@dataclass(frozen=True)
class FoldManifest:
    """All fits of a cross-validation or jackknife, and the trials they left out.

    Trials are known by their names and, after `bind`, by their sounds.

    Attributes
    ----------
    trials : tuple of str
        All trials.
    folds : tuple of Fold
        All fits.
    facts : dict
        Anything else to be stored: seed, configuration, version.
    sounds : mapping of str to str
        Trial to SHA-256 of its sound (``dataset.source_fingerprint(clip)``); empty before `bind`.

    Examples
    --------
    >>> plan = FoldManifest.plan(["a", "b", "c"], crossval=True, jackknife=True)
    >>> [fold.name for fold in plan.eligible("b")]
    ['model-000_001', 'model-001_002']
    """

    trials: tuple[str, ...]
    folds: tuple[Fold, ...]
    facts: dict[str, Any]
    sounds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        same: dict[str, str] = {}
        for fold in self.folds:
            key = unicodedata.normalize("NFC", fold.name).casefold()
            if key in same:
                raise ValueError(f"folds {same[key]!r} and {fold.name!r} would share a folder on some disks")
            same[key] = fold.name
        known = set(self.trials)
        lost = [trial for fold in self.folds for trial in fold.left_out if trial not in known]
        if lost or not set(self.sounds) <= known:
            raise ValueError(f"trials must hold every name that folds and sounds hold; missing: {lost[:5]}")

    @classmethod
    @checked
    def plan(
        cls,
        trials: Sequence[str],
        *,
        crossval: bool = False,
        jackknife: bool = False,
        groups: Sequence[Sequence[str]] | None = None,
        **facts: Any,
    ) -> FoldManifest:
        """Manifest of the fits that are needed.

        Parameters
        ----------
        trials : sequence of str
            Names of all trials, each once.
        crossval, jackknife : bool
            Neither: one fit to all. One of them: a fit without each trial. Both: one without each pair, so
            that every trial has a jackknife of fits that were not trained on it.
        groups : sequence of sequence of str, optional
            Trials that are left out together; None leaves out one at a time. The numbers in the names of the
            fits are then those of the groups.
        **facts
            Stored with it; plain data.

        Returns
        -------
        FoldManifest
            The plan.

        Raises
        ------
        ValueError
            For a name that occurs twice, groups that are not all trials once, or too few of them.
        """
        names = tuple(str(trial) for trial in trials)
        together = int(crossval) + int(jackknife)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"trials must have different names, these occur twice: {', '.join(twice)}")
        parts = [(name,) for name in names] if groups is None else [tuple(group) for group in groups]
        if sorted(name for part in parts for name in part) != sorted(names):
            raise ValueError("groups must hold every trial once")
        if len(parts) < together + 1:
            what = "trials" if groups is None else "groups"
            raise ValueError(f"leaving out {together} of {len(parts)} {what} leaves none to fit")
        folds = []
        for left in itertools.combinations(range(len(parts)), together):
            label = "_".join(f"{place:03d}" for place in left) or "all"
            folds.append(Fold(f"model-{label}", tuple(name for place in left for name in parts[place])))
        return cls(names, tuple(folds), facts)

    @classmethod
    @checked
    def from_names(
        cls, folder: str | os.PathLike[str], trials: Sequence[str] | NeuralDataset
    ) -> FoldManifest:
        """Manifest read from the file names of a folder, in the format of the dynamic STRF page.

        Parameters
        ----------
        folder : path
            Holds ``model-all.pt``, ``model-000.pt`` or ``model-000_001.pt`` and so on; any ending.
        trials : sequence of str, or NeuralDataset
            Names of all trials in the order of the fit, or the dataset with the clips in that order.

        Returns
        -------
        FoldManifest
            The fits found; from a dataset with the sounds of the trials.

        Raises
        ------
        FileNotFoundError
            For a folder without such files.
        ValueError
            For a number without a trial, or two trials with the same sound.
        """
        if not isinstance(trials, Sequence):
            order = clip_names(trials, range(len(trials)))
            sounds = {name: trials.source_fingerprint(clip) for clip, name in enumerate(order)}
            return cls.from_names(folder, order)._with_sounds(sounds)
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

    @checked
    def bind(self, dataset: NeuralDataset) -> FoldManifest:
        """This manifest with the sounds of its trials, which are found in a dataset by name.

        Parameters
        ----------
        dataset : NeuralDataset
            Holds every trial under its own name, ``stim_meta[clip]["name"]``.

        Returns
        -------
        FoldManifest
            The same when the sounds are known already.

        Raises
        ------
        ValueError
            When a trial is missing, two clips have its name, or two trials hold the same sound: a fit that
            left one out saw the other.
        """
        if self.sounds:
            return self
        # names of their own only: those by position are others in a subset or another order
        own = [str(meta["name"]) if "name" in meta else None for meta in dataset.stim_meta]
        for trial in self.trials:
            if own.count(trial) != 1:
                found = "no clip" if trial not in own else "more than one clip"
                raise ValueError(
                    f"{found} of {dataset!r} is named {trial!r} in stim_meta: give the dataset with all "
                    "trials to manifest.bind, or make the manifest with plan_folds(dataset, crossval=True)"
                )
        return self._with_sounds({t: dataset.source_fingerprint(own.index(t)) for t in self.trials})

    def _with_sounds(self, sounds: Mapping[str, str]) -> FoldManifest:
        first: dict[str, str] = {}
        for trial, sound in sounds.items():
            if first.setdefault(sound, trial) != trial:
                raise ValueError(
                    f"trials {first[sound]!r} and {trial!r} hold the same sound, so a fit without one saw it "
                    "in the other; plan_folds(dataset, ...) makes one trial of them"
                )
        return dataclasses.replace(self, sounds=sounds)

    def trial_of(self, dataset: NeuralDataset, clip: int) -> str:
        """Trial that has the sound of a clip.

        Parameters
        ----------
        dataset : NeuralDataset
            Any view: a subset, another order, other neurons, standardised.
        clip : int
            Its clip.

        Returns
        -------
        str
            The trial.

        Raises
        ------
        KeyError
            When no trial has this sound.
        ValueError
            When the sounds of the trials are not known; call `bind` first.
        """
        if not self.sounds:
            raise ValueError("this manifest knows no sounds yet: manifest = manifest.bind(dataset)")
        sound = dataset.source_fingerprint(clip)
        for trial, known in self.sounds.items():
            if known == sound:
                return trial
        raise KeyError(
            f"clip {clip} ({dataset.stim_meta[clip].get('name', 'no name')}) holds the sound of no trial of "
            "this manifest, so nothing says which fits never saw it"
        )

    def eligible(self, trial: str) -> tuple[Fold, ...]:
        """Fits that left a trial out.

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
            When every fit was trained on it.
        """
        if trial not in self.trials:
            raise KeyError(f"there is no trial {trial!r} in this manifest; it has {', '.join(self.trials)}")
        unseen = tuple(fold for fold in self.folds if trial in fold.left_out)
        if not unseen:
            raise ValueError(
                f"every fit saw trial {trial!r}: plan them with crossval=True to score trials that are new"
            )
        return unseen

    @checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the manifest as JSON with its checksum; an older file stays until the new one is complete.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        TypeError
            When ``facts`` hold what JSON cannot.
        """
        folds = [{"name": fold.name, "left_out": list(fold.left_out)} for fold in self.folds]
        tree = {
            "format": FORMAT,
            "trials": list(self.trials),
            "sounds": dict(self.sounds),
            "folds": folds,
            "facts": self.facts,
        }
        json.dumps(tree)  # what is no plain data is refused, not written as text
        write_sealed_json(path, tree)
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> FoldManifest:
        """Read a manifest.

        Parameters
        ----------
        path : path
            File that `save` wrote.

        Returns
        -------
        FoldManifest
            The manifest.

        Raises
        ------
        FileNotFoundError
            When there is no file.
        ValueError
            When it is damaged or no manifest, or names a fold so that it would lie elsewhere.

        Warns
        -----
        UserWarning
            When an earlier version wrote it, without a checksum.
        """
        tree = read_json(path, REMEDY)
        with naming_damage(path, REMEDY):
            if not isinstance(tree, dict) or tree.get("format") not in (FORMAT, UNSEALED_FORMAT):
                raise ValueError("it is no fold manifest")
            facts, sounds = tree["facts"], tree.get("sounds", {})
            _check_texts("trials", tree["trials"])
            for fold in tree["folds"]:
                _check_texts("left_out", fold["left_out"])
            if not isinstance(facts, dict) or not isinstance(sounds, dict):
                raise TypeError("facts and sounds must be dictionaries")
            _check_texts("sounds", list(sounds.values()))
            folds = tuple(Fold(fold["name"], tuple(fold["left_out"])) for fold in tree["folds"])
            manifest = cls(tuple(tree["trials"]), folds, facts, sounds)
        if tree["format"] == UNSEALED_FORMAT:
            warn_unsealed(path, "FoldManifest.load(path).save(path) adds them")
        else:
            read_json(path, REMEDY, sealed=True)
        return manifest


def _check_texts(name: str, values: object) -> None:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise TypeError(f"{name} must be a list of names, got {values!r:.80}")


@checked_but("n_folds")
def plan_folds(
    dataset: NeuralDataset,
    *,
    crossval: bool = False,
    jackknife: bool = False,
    n_folds: int | None = None,
    seed: int = 0,
) -> FoldManifest:
    """Manifest of the fits of a cross-validation, a jackknife, or both, of a dataset.

    Every distinct sound is a trial, named after its first clip; clips with the same sound stay together.

    Parameters
    ----------
    dataset : NeuralDataset
        All clips that take part.
    crossval, jackknife : bool
        As in `FoldManifest.plan`: one of them leaves each trial out once, both leave out each pair, neither
        makes one fit to all.
    n_folds : int, optional
        Leave out one group of trials at a time, of this many groups formed in a seeded order; None leaves out
        single trials. Both of them together need ``n_folds (n_folds - 1) / 2`` fits.
    seed : int
        Seed of the order.

    Returns
    -------
    FoldManifest
        The manifest with the sounds of the trials.

    Raises
    ------
    ValueError
        For too few trials, more groups than trials, groups that none leaves out, or a dataset of `windows`.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=6, n_repeats=2, clip_seconds=0.1)
    >>> plan = plan_folds(ds, crossval=True, jackknife=True, n_folds=3)
    >>> [fold.name for fold in plan.folds], len(plan.folds[0].left_out)
    (['model-000_001', 'model-000_002', 'model-001_002'], 4)
    """
    if any("window_of" in row for row in dataset.stim_meta):
        raise ValueError("these are windows: plan folds of the recording, then make windows")
    clips = [group[0] for group in same_sounds(dataset)]
    names = clip_names(dataset, clips)
    groups = None
    if n_folds is not None:
        if isinstance(n_folds, bool) or not isinstance(n_folds, int):
            raise TypeError(f"n_folds must be a whole number, got {n_folds!r}")
        if not 2 <= n_folds <= len(names):
            raise ValueError(f"n_folds must lie in 2 .. {len(names)}, the number of trials, got {n_folds}")
        if not (crossval or jackknife):
            raise ValueError(
                "n_folds says how many groups are left out: pass crossval=True, jackknife=True or both"
            )
        order = [place for group in shuffled([[i] for i in range(len(names))], seed) for place in group]
        groups = [[names[place] for place in sorted(order[first::n_folds])] for first in range(n_folds)]
    plan = FoldManifest.plan(names, crossval=crossval, jackknife=jackknife, groups=groups)
    sounds = {name: dataset.source_fingerprint(clip) for name, clip in zip(names, clips, strict=True)}
    return dataclasses.replace(plan, sounds=sounds)


def clip_names(ds: NeuralDataset, clips: Sequence[int]) -> list[str]:
    """Names of clips: those of the recording where it has them, made unique."""
    names: dict[str, None] = {}
    for clip in clips:
        name = str(ds.stim_meta[clip].get("name", f"clip{clip:03d}"))
        while name in names:  # a recording may itself name a clip "rain (1)"
            name = f"{name} ({clip})"
        names[name] = None
    return list(names)
