"""Fits of a cross-validation or jackknife on disk, and predictions and scores of sounds that they never saw.

No fit that saw a sound ever predicts it: a clip is known by its sound, in any view of the recording.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepSTRF._files import load_tensors, read_bytes
from deepSTRF._validation import checked, checked_but
from deepSTRF.datasets import FoldManifest, NeuralDataset
from deepSTRF.datasets.folds import Fold
from deepSTRF.models import NeuralModel
from deepSTRF.models.fitted_on import check_response_unit
from deepSTRF.models.io.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from deepSTRF.models.io.legacy import load_public_state_dict
from deepSTRF.models.prediction import predict_clips
from deepSTRF.training.evaluation import N_BOOTSTRAP, ScoreTable, score_predictions

__all__ = [
    "MANIFEST",
    "RUN",
    "RUN_FILE",
    "FoldFits",
    "is_complete",
    "mark_of",
    "predict_folds",
    "score_folds",
]

#: File that says which fit left out what.
MANIFEST = "folds.json"
#: File of a fit with the run that it belongs to, which its manifest names.
RUN_FILE, RUN = "run.txt", "mark_of_run"


class FoldFits:
    """The folder that `fit_folds` filled: a manifest and one saved model per fit.

    Parameters
    ----------
    folder : path
        Holds ``folds.json`` and a folder per fit (``model-003``, ``model-003_007``). Files of the dynamic
        STRF page, ``model-003_007.pt`` with a ``state_dict`` each, are read too, given the next two.
    recording : NeuralDataset, optional
        All trials in the order in which they were fitted, for a folder without a manifest.
    build : callable, optional
        ``build()`` returns a model for the weights of such a file.
    modules : mapping of str to type, optional
        Your own classes, as in ``NeuralModel.from_pretrained``.

    Attributes
    ----------
    folder : pathlib.Path
        The folder.
    manifest : FoldManifest
        Which fit left out what.

    Raises
    ------
    FileNotFoundError
        When there is no manifest, and no recording is given or no files are named as on the page.
    ValueError
        When the manifest is damaged, or clips of the recording hold the same sound.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.models.audio import Linear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = FoldManifest.plan(["a", "b"], crossval=True).save(Path(folder) / "folds.json")
    ...     for name in ("model-000", "model-001"):
    ...         _ = Linear(8, 3).save_pretrained(Path(folder) / name)
    ...     FoldFits(folder).model("model-001").T
    3
    """

    @checked
    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        recording: NeuralDataset | None = None,
        build: Callable[[], nn.Module] | None = None,
        modules: Mapping[str, type] | None = None,
    ) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if path.is_file():
            self.manifest = FoldManifest.load(path)
        elif recording is not None:
            self.manifest = FoldManifest.from_names(folder, recording)
        else:
            raise FileNotFoundError(
                f"{path} does not exist; fit_folds writes it. For files of another origin give recording=, "
                "the dataset of all trials in the order in which they were fitted"
            )
        self._build, self._modules = build, modules
        self._kept: dict[str, nn.Module] = {}

    def __repr__(self) -> str:
        return f"FoldFits({str(self.folder)!r}: {len(self.manifest.folds)} fits, {self.n_missing} missing)"

    @property
    def n_missing(self) -> int:
        """Fits that are planned and not there yet."""
        return sum(not self.has(fold.name) for fold in self.manifest.folds)

    @checked
    def has(self, name: str) -> bool:
        """Return whether a fit is there.

        Parameters
        ----------
        name : str
            Name of a fit of the manifest.

        Returns
        -------
        bool
            False where it is not fitted yet, has lost a file, or is of a run before this one.
        """
        if all(fold.name != name for fold in self.manifest.folds):
            return False
        return self._is_complete(name) or (self.folder / f"{name}.pt").is_file()

    def _is_complete(self, name: str) -> bool:
        return is_complete(self.folder / name, self.manifest.facts.get(RUN))

    @checked
    def model(self, name: str) -> nn.Module:
        """Return a fit in eval mode; it is read once.

        Parameters
        ----------
        name : str
            Name of a fit of the manifest.

        Returns
        -------
        nn.Module
            The model, on the CPU.

        Raises
        ------
        FileNotFoundError
            When it is not there (yet).
        ValueError
            When its files are damaged, or hold bare weights and no ``build`` was given. Also for a name that
            the manifest does not have.
        """
        if all(fold.name != name for fold in self.manifest.folds):
            raise ValueError(f"there is no fold {name!r:.80} in {self.folder / MANIFEST}")
        if name not in self._kept:
            self._kept[name] = self._read(name).eval()
        return self._kept[name]

    @checked
    def unseen(self, dataset: NeuralDataset, clip: int, *, allow_unknown: bool = False) -> list[nn.Module]:
        """Return the fits that never saw the sound of a clip.

        Parameters
        ----------
        dataset : NeuralDataset
            Any view; the clip is known by its sound.
        clip : int
            Its clip.
        allow_unknown : bool
            Whether a sound that took no part may be given to all fits. It is an error otherwise, since the
            same sound in another form (cut, resampled) is unknown too.

        Returns
        -------
        list of nn.Module
            At least one, in the order of the manifest.

        Raises
        ------
        KeyError
            For a sound that took no part.
        ValueError
            When every fit saw it.
        FileNotFoundError
            When one of them is not fitted yet.
        """
        return [self.model(fold.name) for fold in self._folds(dataset, clip, allow_unknown)]

    def _folds(self, dataset: NeuralDataset, clip: int, allow_unknown: bool) -> tuple[Fold, ...]:
        manifest = self.manifest = self.manifest.bind(dataset)
        try:
            trial = manifest.trial_of(dataset, clip)
        except KeyError as error:
            if allow_unknown:
                return manifest.folds
            raise KeyError(f"{error.args[0]}; allow_unknown=True gives such clips to all fits") from None
        return manifest.eligible(trial)

    def _read(self, name: str) -> nn.Module:
        folder, file = self.folder / name, self.folder / f"{name}.pt"
        if self._is_complete(name):
            try:
                model = NeuralModel.from_pretrained(folder, modules=self._modules)
            except ValueError as error:
                raise ValueError(
                    f"{error}. To fit it anew delete the folder {folder} and call fit_folds again"
                ) from error
            return model if isinstance(model, nn.Module) else model[0]
        if folder.is_dir():
            raise FileNotFoundError(
                f"{folder} has lost {CONFIG_FILE} or {WEIGHTS_FILE}, or is of another run or fold: call "
                "fit_folds again, which fits it anew"
            )
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is not fitted yet: call fit_folds again to go on")
        if self._build is None:
            raise ValueError(f"{file} holds weights only: FoldFits(..., build=lambda: MyModel(...))")
        bare = self._build()
        state = load_tensors(file)
        if state.keys() != bare.state_dict().keys():  # those of the toolbox
            return load_public_state_dict(bare, state)
        bare.load_state_dict(state)
        return bare


def is_complete(folder: Path, run: object = None) -> bool:
    """Whether a folder holds all files of the fit of its name, of the run with this mark; None: without."""
    if not all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        return False
    try:
        return read_bytes(folder / RUN_FILE, limit=1000) == mark_of(str(run), folder.name)
    except (OSError, ValueError):
        return run is None and not os.path.lexists(folder / RUN_FILE)


def mark_of(run: str, name: str) -> bytes:
    """Content of the mark of a fit: exchanged with another fit of the same run, it would be a leak."""
    return f"{run} {name}\n".encode()


def _check_fits(fits: object) -> None:
    if not hasattr(fits, "unseen"):
        raise TypeError(
            f"fits must be what fit_folds returns, got {type(fits).__name__}; those of an earlier run are "
            "FoldFits(folder)"
        )


@checked_but("fits")
def predict_folds(
    fits: FoldFits,
    dataset: NeuralDataset,
    *,
    clips: Sequence[int] | None = None,
    unit: str = "bin",
    device: torch.device | str | None = None,
    allow_unknown: bool = False,
) -> list[Tensor]:
    """Predict every clip by the fits that never saw its sound, averaged.

    Parameters
    ----------
    fits : FoldFits
        From `fit_folds`.
    dataset : NeuralDataset
        Any view of the recording.
    clips : sequence of int, optional
        Which clips; None is all.
    unit : {"bin", "hz"}
        The unit of the responses, or for counts and rates per bin: per second.
    device : torch.device or str, optional
        Where to run; None is where the models are.
    allow_unknown : bool
        See `FoldFits.unseen`.

    Returns
    -------
    list of Tensor
        One (N, T) tensor per clip, on the CPU.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        When no fit is known never to have seen a clip; see `FoldFits.unseen`.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.datasets import plan_folds
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.crossval import fit_folds
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=2, clip_seconds=0.2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fits = fit_folds(lambda seed: Linear(ds.F, 5, 2), ds, plan_folds(ds, crossval=True), folder,
    ...                      fitter_kwargs={"max_epochs": 1})
    ...     [tuple(rates.shape) for rates in predict_folds(fits, ds)]
    [(2, 40), (2, 40), (2, 40)]
    """
    _check_fits(fits)
    averaged = []
    for clip in range(len(dataset)) if clips is None else clips:
        models = fits.unseen(dataset, clip, allow_unknown=allow_unknown)
        rates = [predict_clips(one, dataset, clips=[clip], unit=unit, device=device)[0] for one in models]
        averaged.append(torch.stack(rates).mean(0))
    return averaged


@checked_but("fits")
def score_folds(
    fits: FoldFits,
    dataset: NeuralDataset,
    *,
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
    device: torch.device | str | None = None,
    allow_unknown: bool = False,
) -> ScoreTable:
    """Score the predictions of `predict_folds`, neuron by neuron.

    All clips count together; for a table per clip call it on ``dataset.select(clips=[clip])``.

    Parameters
    ----------
    fits : FoldFits
        From `fit_folds`.
    dataset : NeuralDataset
        Any view of the recording.
    centring, n_bootstrap, warmup_ms : str, int, float
        As in `score_model`.
    device, allow_unknown : device, bool
        As in `predict_folds`.

    Returns
    -------
    ScoreTable
        As from `score_model`.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        As in `predict_folds` and `score_model`.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.datasets import plan_folds
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.crossval import fit_folds
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=2, clip_seconds=0.2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fits = fit_folds(lambda seed: Linear(ds.F, 5, 2), ds, plan_folds(ds, crossval=True), folder,
    ...                      fitter_kwargs={"max_epochs": 1})
    ...     table = score_folds(fits, ds, n_bootstrap=0)
    >>> len(table), "cc_norm" in table.columns
    (2, True)
    """
    _check_fits(fits)
    if len(dataset):
        check_response_unit(fits.unseen(dataset, 0, allow_unknown=allow_unknown)[0], dataset)
    return score_predictions(
        lambda clip: predict_folds(fits, dataset, clips=[clip], device=device, allow_unknown=allow_unknown)[
            0
        ],
        dataset,
        centring=centring,
        n_bootstrap=n_bootstrap,
        warmup_ms=warmup_ms,
    )
