"""The same fit from several random starts, so that a score has a spread.

Each seed governs the initial weights and the order of the clips. The files of a run are valid JSON, with the
scores per neuron and the weights beside it as tensors.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from deepSTRF._files import check_place, check_target, save_tensors, write_json
from deepSTRF._validation import checked_but, outside_level
from deepSTRF.datasets import NeuralDataset
from deepSTRF.training.cache import FrontEndCache
from deepSTRF.training.callbacks import FitDivergedError, cpu_state
from deepSTRF.training.data import make_loaders, read_loader
from deepSTRF.training.fit_many import ManyFits, fit_many
from deepSTRF.training.fitter import Fitter, build_fit, check_fitter_arguments
from deepSTRF.training.objective import mean_score, mode_of, summarise
from deepSTRF.training.seeds import seeded

__all__ = ["fit_multi_seed"]

Loaders = tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any]]
#: Arguments of the Fitter that each seed sets for itself.
MANAGED = ("model", "train_loader", "val_loader", "seed")
SPLITS = ("val", "test")
#: More fits than this in one call are a mistake.
MOST_SEEDS = 100_000
#: Arguments of the Fitter that name a file; each seed has its own.
_SEEDS_OWN = ("ckpt_path", "state_path")
#: Arguments of the Fitter that the seeds fitted together do without.
NOT_STACKED = ("log_fn", "progress", "front_end_cache", "clip_bytes", "fast", *_SEEDS_OWN)
_FILES_OF_SEED = ("history.json", "final.json", "final_neurons.pt", "best.pt")
_FILES_OF_ALL = ("summary.json", "summary_neurons.pt")


@checked_but("model_factory", "loader_factory")
def fit_multi_seed(
    model_factory: Callable[[int], nn.Module],
    loader_factory: Callable[[int], Loaders],
    n_seeds: int = 5,
    *,
    seeds: Sequence[int] | None = None,
    fitter_kwargs: Mapping[str, Any] | None = None,
    logger_factory: Callable[[int], Any] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    set_seed_strict: bool = False,
    together: bool = False,
) -> dict[str, Any]:
    """Fit and score one model per seed.

    Each seed governs the initial weights and the order of the clips; the spread is that of the optimisation,
    not of the data (for that, repeat over the folds of `k_fold`). Random states are put back at the end.
    Spectrograms of a front-end that does not learn are shared between the seeds. A seed whose fit diverges is
    reported with a warning and under 'failed', and its rows are NaN; the other seeds go on.

    Parameters
    ----------
    model_factory : callable
        ``model_factory(seed)`` returns a new model.
    loader_factory : callable
        ``loader_factory(seed)`` returns (train, validation, test) loaders; see `make_loaders`.
    n_seeds : int
        Seeds 0 .. n_seeds - 1.
    seeds : sequence of int, optional
        Seeds by name, all different; replaces ``n_seeds``.
    fitter_kwargs : mapping, optional
        Further arguments of `Fitter`. Optimizer and scheduler are given as functions, since each seed has its
        own model, and ``callbacks`` as a function of the seed that returns a list of new ones:
        ``{"callbacks": lambda seed: [MyCallback()]}``. ``ckpt_path`` and ``state_path`` become
        ``<stem>_seed<k><suffix>``; with a ``state_path`` a killed run goes on with the seed, and the epoch,
        where it was.
    logger_factory : callable, optional
        ``logger_factory(seed)`` returns a logger: called with each epoch's record, and
        ``finalize({'val': ..., 'test': ...})`` and ``close()`` if it has them, also when a fit fails. A
        ``log_fn`` is called as well.
    output_dir : path, optional
        Folder for ``seed<k>/`` (history.json, final.json, final_neurons.pt, best.pt), summary.json and
        summary_neurons.pt.
    set_seed_strict : bool
        As ``strict`` of `set_random_seed`.
    together : bool
        Whether all seeds are trained at once by `fit_many`, with the numbers of separate fits within
        rounding: two to four times faster for models of up to a hundred neurons. It needs loaders that
        ``make_loaders(*views, seed=seed)`` makes of the same views for every seed; loggers hear of the epochs
        when all are over. What it cannot train together is fitted one after another, and a warning says why.

    Returns
    -------
    dict
        'seeds', 'per_seed_histories'; for each score m and p in ('val', 'test') 'per_seed_{p}_{m}' (n_seeds,
        N) or (n_seeds, 1), 'mean_{p}_{m}' and 'std_{p}_{m}' (N,) over the seeds (NaN left out, population
        standard deviation); 'best_seed' and 'best_state_dict' (CPU) by the validation score; 'failed', seed
        to reason.

    Raises
    ------
    ValueError
        For no seeds, equal seeds, an argument that is managed here, or a monitor that is not a validation
        score.
    FitDivergedError
        When every seed diverged.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.training import make_loaders
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=5)
    >>> views = ds.select(clips=[0, 1]), ds.select(clips=[2]), ds.select(clips=[3])
    >>> result = fit_multi_seed(lambda seed: Linear(ds.F, 9, 3), lambda seed: make_loaders(*views, seed=seed),
    ...                         n_seeds=2, fitter_kwargs={"max_epochs": 2})
    >>> result["seeds"], result["per_seed_test_cc_norm"].shape
    ([0, 1], torch.Size([2, 3]))
    """
    arguments = dict(fitter_kwargs or {})
    chosen = _checked_seeds(n_seeds, seeds)
    check_fitter_arguments(arguments, MANAGED, "fit_multi_seed")
    monitor = arguments.get("monitor", "val_cc_norm")
    if not str(monitor).startswith("val_"):
        raise ValueError(
            f"monitor={monitor!r}: seeds are compared on the validation clips, so it must start with 'val_'"
        )
    arguments.setdefault("front_end_cache", FrontEndCache())
    folder = None if output_dir is None else Path(output_dir)
    _check_targets(folder, chosen, arguments)
    fits = _fit_together(chosen, model_factory, loader_factory, arguments) if together else None
    results: dict[int, dict[str, Any]] = {}
    failed: dict[int, str] = {}
    best = _BestSeed(monitor, mode_of(arguments))
    error: FitDivergedError | None = None
    for index, seed in enumerate(chosen):
        logger = None if logger_factory is None else logger_factory(seed)
        done = None if fits is None else functools.partial(_taken, fits, index)
        try:
            with seeded(seed, strict=set_seed_strict):
                fitter, result = _fit_one(seed, model_factory, loader_factory, arguments, logger, done)
        except FitDivergedError as diverged:
            error = diverged
            failed[seed] = str(diverged)
            warnings.warn(f"seed {seed} diverged: {diverged}", RuntimeWarning, stacklevel=outside_level())
            continue
        finally:
            _call(logger, "close")
        results[seed] = result
        best.offer(seed, result["val"], fitter.model)
        if folder is not None:
            _write_seed(folder / f"seed{seed}", result, fitter.model)
    if error is not None and not results:
        raise error
    summary = _summarise(chosen, results, failed, best)
    if folder is not None:
        _write_summary(folder, summary, best.monitor, best.mode)
    return summary


def _checked_seeds(n_seeds: int, seeds: Sequence[int] | None) -> list[int]:
    chosen = [int(seed) for seed in islice(range(n_seeds) if seeds is None else seeds, MOST_SEEDS + 1)]
    if not chosen:
        raise ValueError("no seeds to fit: give n_seeds >= 1, or seeds=[0, 1, 2]")
    if len(chosen) > MOST_SEEDS:
        name = "n_seeds" if seeds is None else "seeds"
        raise ValueError(f"{name} asks for more than {MOST_SEEDS:,} fits, the most of one call")
    if len(set(chosen)) != len(chosen):
        raise ValueError(
            f"seeds must all differ, got {chosen}: equal seeds give equal fits and would overwrite files"
        )
    return chosen


def _check_targets(folder: Path | None, seeds: list[int], arguments: dict[str, Any]) -> None:
    """Raise OSError where a file of some seed could not be written, before the first of them is fitted."""
    for seed in seeds:
        for name in _SEEDS_OWN:
            if arguments.get(name) is not None:
                check_target(_path_of_seed(arguments[name], seed))
    if folder is not None:
        ours = [f"seed{seed}/{name}" for seed in seeds for name in _FILES_OF_SEED]
        for name in (*ours, *_FILES_OF_ALL):
            check_place(folder, name)
            _check_no_link(folder / name)


def _check_no_link(path: Path) -> None:
    """Raise OSError for what cannot be written in a folder of ours; nothing goes through links there."""
    check_target(path)
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link, and a file is to be written there; remove it first")


def _path_of_seed(path: str | os.PathLike[str], seed: int) -> Path:
    """The path of a seed's own file."""
    return Path(path).with_name(f"{Path(path).stem}_seed{seed}{Path(path).suffix}")


def _fit_one(
    seed: int,
    model_factory: Callable[[int], nn.Module],
    loader_factory: Callable[[int], Loaders],
    arguments: dict[str, Any],
    logger: Any,
    done: Callable[[], tuple[nn.Module, list[dict[str, Any]]]] | None,
) -> tuple[Fitter, dict[str, Any]]:
    """Fit one seed, or take what was ``done`` before; returns the fitter and its history and scores."""
    own = dict(arguments)
    for name in _SEEDS_OWN:
        if own.get(name) is not None:
            own[name] = _path_of_seed(own[name], seed)
    log_fn = own.get("log_fn")
    if logger is not None:
        own["log_fn"] = logger if log_fn is None else lambda record: (logger(record), log_fn(record))
    own.setdefault("progress", False)
    model, history = (model_factory(seed), None) if done is None else done()
    train, val, test = loader_factory(seed)
    fitter = build_fit(model, train, val, seed=seed, **own)
    if history is None:
        history = fitter.fit()
    elif own.get("log_fn") is not None:
        for record in history:
            own["log_fn"](record)
    result = {"history": history, "val": fitter.evaluate(val), "test": fitter.evaluate(test)}
    _call(logger, "finalize", {split: result[split] for split in SPLITS})
    return fitter, result


def _fit_together(
    seeds: list[int],
    model_factory: Callable[[int], nn.Module],
    loader_factory: Callable[[int], Loaders],
    arguments: Mapping[str, Any],
) -> ManyFits | None:
    """Fit all seeds at once; None, after a warning, where their loaders do not allow it."""
    for name in _SEEDS_OWN:
        if arguments.get(name) is not None:
            raise ValueError(
                f"together=True writes no files of single fits: leave {name} out of fitter_kwargs"
            )
    first: tuple[DataLoader[Any], DataLoader[Any]] | None = None
    for seed in seeds:
        with seeded(seed):
            train, val, _ = loader_factory(seed)
        first = (train, val) if first is None else first
        reason = _other_order(seed, train, val, first)
        if reason:
            text = f"together=True: {reason}; the {len(seeds)} seeds are fitted one after another"
            warnings.warn(text, UserWarning, stacklevel=outside_level())
            return None
        batch_size = train.batch_size or 1
    left = {key: value for key, value in arguments.items() if key not in NOT_STACKED}
    views = first[0].dataset, first[1].dataset  # type: ignore[index]
    return fit_many(
        model_factory, *views, per="seed", seeds=seeds, batch_size=batch_size, fitter_kwargs=left  # type: ignore[arg-type]
    )  # fmt: skip


def _other_order(
    seed: int, train: DataLoader[Any], val: DataLoader[Any], first: tuple[DataLoader[Any], DataLoader[Any]]
) -> str:
    """Why loaders do not serve the clips of the first ones in the order of their seed; else empty."""
    ours = make_loaders(*(cast(NeuralDataset, loader.dataset) for loader in first), seed=seed)
    for name, loader, other, own in zip(("training", "validation"), (train, val), first, ours, strict=True):
        if isinstance(found := read_loader(loader), str):
            return f"the {name} loader is read batch by batch ({found})"
        if loader.dataset is not other.dataset:
            return f"the {name} loaders of two seeds have different data sets"
        plain = type(loader.batch_sampler) is BatchSampler and not loader.drop_last
        if (
            not plain
            or type(loader.sampler) is not type(own.sampler)
            or loader.batch_size != other.batch_size
        ):
            return f"the {name} loader has a sampler or batches of its own"
    generator = train.generator
    if generator is None or not torch.equal(generator.get_state(), ours[0].generator.get_state()):
        return "the training loader does not draw from its seed, as those of make_loaders(..., seed=seed) do"
    return ""


def _taken(fits: ManyFits, index: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Model and history of one of many fits; FitDivergedError where it failed."""
    history = fits.histories[index]
    if index in fits.failed:
        raise FitDivergedError(fits.failed[index], epoch=len(history))
    return fits.models[index], history


def _call(logger: Any, name: str, *values: Any) -> None:
    method = getattr(logger, name, None)
    if callable(method):
        method(*values)


class _BestSeed:
    """The seed with the best validation score; only its weights are kept, on the CPU."""

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.seed: int | None = None
        self.state: dict[str, Any] | None = None
        self._score = math.nan

    def offer(self, seed: int, scores: dict[str, Any], model: nn.Module) -> None:
        score = mean_score(scores[self.monitor.removeprefix("val_")]).mean
        if self.mode == "min":
            score = -score
        if self.seed is None or score > self._score or (math.isnan(self._score) and not math.isnan(score)):
            self.seed, self._score = seed, score
            self.state = cpu_state(model)


def _summarise(
    seeds: list[int], results: dict[int, dict[str, Any]], failed: dict[int, str], best: _BestSeed
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "seeds": seeds,
        "failed": failed,
        "per_seed_histories": [results[seed]["history"] if seed in results else [] for seed in seeds],
        "best_seed": best.seed,
        "best_state_dict": best.state,
    }
    some = next(iter(results.values()))
    for split in SPLITS:
        for name, value in some[split].items():
            missing = torch.full_like(_row(value), torch.nan)
            rows = [_row(results[seed][split][name]) if seed in results else missing for seed in seeds]
            table = torch.stack(rows)
            summary[f"per_seed_{split}_{name}"] = table
            summary[f"mean_{split}_{name}"] = table.nanmean(dim=0)
            summary[f"std_{split}_{name}"] = (table - table.nanmean(dim=0)).square().nanmean(dim=0).sqrt()
    return summary


def _row(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).flatten().float()


# ---- files of a run


def _write_seed(folder: Path, result: dict[str, Any], model: nn.Module) -> None:
    """Write one seed's history, final scores and weights."""
    history = [{key: summarise(value) for key, value in record.items()} for record in result["history"]]
    final = {split: {name: summarise(value) for name, value in result[split].items()} for split in SPLITS}
    vectors = {
        split: {name: value for name, value in result[split].items() if isinstance(value, Tensor)}
        for split in SPLITS
    }
    for name, value in zip(_FILES_OF_SEED, (history, final, vectors, cpu_state(model)), strict=True):
        (write_json if name.endswith(".json") else save_tensors)(folder / name, value)


def _write_summary(folder: Path, summary: dict[str, Any], monitor: str, mode: str) -> None:
    """Write what all seeds have in common: means and spreads, and which seed was best."""
    facts: dict[str, Any] = {
        "seeds": summary["seeds"],
        "best_seed": summary["best_seed"],
        "monitor": monitor,
        "mode": mode,
        "failed": {str(seed): reason for seed, reason in summary["failed"].items()},
    }
    tables = {key: value for key, value in summary.items() if isinstance(value, Tensor)}
    for key, value in tables.items():
        if key.startswith(("mean_", "std_")):
            facts[key] = summarise(value if value.numel() > 1 else float(value))
    for name, content in zip(_FILES_OF_ALL, (facts, tables), strict=True):
        (write_json if name.endswith(".json") else save_tensors)(folder / name, content)
