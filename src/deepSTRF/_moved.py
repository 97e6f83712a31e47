"""Earlier places, names and arguments, one table: what means the same works and warns, the rest is an error.

An old module is made on import by `MovedModules`, which `deepSTRF` adds to the import system; an old name is
looked up by the ``__getattr__`` of its module or class, an old keyword by `earlier_keywords` or, where none
is built in, by `refuse_keywords`. Errors show the new call. Nothing in the package itself uses an old place.
The tables of docs/coming-from-other-tools.md are made from this file.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

__all__ = [
    "CHANGED", "GETTERS", "KEYWORDS", "MODULES", "NAMES", "MovedModules", "earlier_keywords", "find_moved",
    "find_moved_attribute", "refuse_keywords", "rename_keywords",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")

#: Old module -> modules that now hold its names.
MODULES: dict[str, tuple[str, ...]] = {
    "deepSTRF.datasets.audio.audio_dataset": ("deepSTRF.datasets.dataset",),
    "deepSTRF.datasets.neural_dataset": ("deepSTRF.datasets.dataset",),
    "deepSTRF.dsp.scan": ("deepSTRF.dsp.recursion",),
    "deepSTRF.interpret.dynamic": ("deepSTRF.interpret.dstrf", "deepSTRF.interpret.filter_statistics"),
    "deepSTRF.metrics.performance": ("deepSTRF.metrics",),
    "deepSTRF.models.audio.audio_model": ("deepSTRF.models.base",),
    "deepSTRF.models.audio.audio_zoo": ("deepSTRF.models.audio",),
    "deepSTRF.models.converters": ("deepSTRF.models.io.legacy",),
    "deepSTRF.models.layers": (
        "deepSTRF.models.kernels", "deepSTRF.models.norms", "deepSTRF.models.attention",
        "deepSTRF.models.audio.dnet", "deepSTRF.models.audio.statenet",
    ),
    "deepSTRF.models.neural_model": ("deepSTRF.models.base",),
    "deepSTRF.models.scales": ("deepSTRF.dsp.scales",),
    "deepSTRF.models.wav2spec.causal_mel": ("deepSTRF.models.wav2spec.mel",),
    "deepSTRF.training.caching": ("deepSTRF.training.cache",),
    "deepSTRF.training.closed_form": ("deepSTRF.experiments.build",),
    "deepSTRF.training.config": ("deepSTRF.training.run_config",),
    "deepSTRF.training.experiment": ("deepSTRF.experiments",),
    "deepSTRF.training.run_folder": ("deepSTRF.experiments.run_folder",),
    "deepSTRF.training.seed": ("deepSTRF.training.seeds",),
    "deepSTRF.training.tb_log": ("deepSTRF.training.loggers",),
    "deepSTRF.training.wandb_log": ("deepSTRF.training.loggers",),
    "deepSTRF.utils.audio_io": ("deepSTRF.dsp.resample",),
    "deepSTRF.utils.data": ("deepSTRF.datasets",),
    "deepSTRF.utils.data_download": ("deepSTRF.datasets.download",),
    "deepSTRF.utils.hub": ("deepSTRF.models.io.checkpoint",),
    "deepSTRF.utils.plotting": ("deepSTRF.plots",),
}  # fmt: skip

#: (old place, name) -> (place, name) that mean the same.
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
    ("deepSTRF.utils", "concat_neural_datasets"): ("deepSTRF.datasets", "concat_neural_datasets"),
    ("deepSTRF.utils", "plot_psth_vs_pred"): ("deepSTRF.plots", "plot_psth_vs_pred"),
    ("deepSTRF.utils", "plot_stim_with_response"): ("deepSTRF.plots", "plot_stim_with_response"),
    ("deepSTRF.utils", "plot_strf_grid"): ("deepSTRF.plots", "plot_strf_grid"),
    ("deepSTRF.utils.data_download", "default_cache_dir"): ("deepSTRF.datasets.download", "data_dir"),
    ("deepSTRF.utils.data_download", "stream_download"): ("deepSTRF.datasets.download", "download_file"),
    ("deepSTRF.utils.data_download", "unzip"): ("deepSTRF.datasets.download", "unpack_zip"),
    ("deepSTRF.utils.hub", "MODEL_CARD_FILE"): ("deepSTRF.models.io.checkpoint", "CARD_FILE"),
    ("deepSTRF.utils.hub", "download_pretrained"): ("deepSTRF.models.io.hub", "download_checkpoint"),
    ("deepSTRF.utils.hub", "save_pretrained_to_dir"): ("deepSTRF.models.io.checkpoint", "save_checkpoint"),
    ("deepSTRF.utils.plotting", "compare_wav2spec_to_groundtruth"): (
        "deepSTRF.interpret", "compare_wav2spec_to_groundtruth",
    ),
}  # fmt: skip

DATASET = "deepSTRF.datasets.NeuralDataset"
_DATA = {
    "ResponseSmoothingTransform": "view = dataset.smoothed(window_ms=21.0)",
    "concatenate_datasets": "concat_neural_datasets([first, second]) of deepSTRF.datasets",
    "fill_missing_data": "neural_collate of deepSTRF.datasets pads a batch; clips themselves stay ragged",
    "hanning_smooth": "deepSTRF.dsp.smoothing.hanning_smooth(x, window_ms, dt_ms), of unit gain: the earlier "
    "one multiplied counts by 2 at 5 ms and by 10 at 1 ms",
}
_DOWNLOADS = {
    "crcns_download": "download it with your account, or deepSTRF.datasets.download.download_file(url, dest)",
    "figshare_download": "deepSTRF.datasets.download.download_file(url, dest)",
    "github_raw_download": "deepSTRF.datasets.download.download_file(url, dest)",
    "osf_download": "deepSTRF.datasets.download.download_file(osf_url(guid), dest)",
    "untar": "tarfile.open(path).extractall(dest, filter='data')",
    "zenodo_download": "deepSTRF.datasets.download.download_file(url, dest)",
}
_DATASET = {
    "compute_neuron_quality": "table = deepSTRF.metrics.neuron_quality(ds)",
    "normalize_responses": "ds = ds.normalized('max', stim_indices=...)",
    "reset_pop_selection": "ds itself, which no selection has changed",
    "reset_stim_selection": "ds itself, which no selection has changed",
    "select_neuron": "view = ds.select(neurons=[i])",
    "select_pop_by_nrn_attr": "view = ds.select(neurons={'area': 'A1'})",
    "select_pop_by_nrn_predicate": "view = ds.select(neurons=predicate)",
    "select_pop_by_stim_attr": "view = ds.select(neurons=ds.select(clips={'type': 'song'}).nrn_masks.any(0))",
    "select_pop_by_stim_predicate": "view = ds.select(neurons=ds.select(clips=predicate).nrn_masks.any(0))",
    "select_population": "view = ds.select(neurons=indices)",
    "select_stim": "view = ds.select(clips=[i])",
    "select_stims": "view = ds.select(clips=indices)",
    "select_stims_by_attr": "view = ds.select(clips={'type': 'song'})",
    "select_stims_by_predicate": "view = ds.select(clips=predicate)",
    "smooth_responses": "ds = ds.smoothed(window_ms=21.0)",
    "standardize_stims": "ds = ds.standardized(stim_indices=..., per_band=True)",
}
_SOUNDS = {
    "load_resampled_mono_wav": "deepSTRF.dsp.resample_exact(torch.from_numpy(samples), fs, "
    "target_fs), behind soundfile.read",
    "load_wav": "samples, fs = soundfile.read(path, dtype='float32')",
}
#: (old place, name) that meant something else -> the call that does it now. The calls of a dataset changed it
#: in place.
CHANGED: dict[tuple[str, str], str] = {
    **{("deepSTRF.utils", name): call for name, call in _DATA.items()},
    **{("deepSTRF.utils.data", name): call for name, call in _DATA.items()},
    **{("deepSTRF.utils.data_download", name): call for name, call in _DOWNLOADS.items()},
    **{("deepSTRF.utils.audio_io", name): call for name, call in _SOUNDS.items()},
    ("deepSTRF.utils.hub", "load_pretrained_from_dir"): "Model.from_pretrained(folder, return_metadata=True)",
    ("deepSTRF.utils.hub", "upload_pretrained"): "model.push_to_hub('user/name')",
    **{(DATASET, name): call for name, call in _DATASET.items()},
}  # fmt: skip

#: Calls of a dataset that now are attributes: what is shown, and how it is read.
GETTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "get_F": ("ds.F", attrgetter("F")),
    "get_N": ("ds.N_neurons", attrgetter("N_neurons")),
    "get_S": ("len(ds)", len),
    "get_nrn_meta": ("ds.nrn_meta", attrgetter("nrn_meta")),
}

#: (call, old keyword) -> keyword that means the same, or else the call that does it now.
KEYWORDS: dict[tuple[str, str], str] = {
    ("AdapTrans", "kernel_size"): "AdapTrans(init_a_vals, init_w_vals): the memory is an exact recursion",
    ("CausalGammatone", "pcen_s"): "CausalGammatone(..., pcen_tau_ms=-hop_ms / math.log(1 - pcen_s)), a time "
    "constant in ms, whatever the bin; pcen_start='zero' begins as it did",
    ("GradientMaps.waveform_gradmap", "stimulus"): "stim",
    ("ICAdaptation", "kernel_size"): "ICAdaptation(init_a_vals): the memory is an exact recursion",
    (
        "LearnableExponentialDecay",
        "kernel_size",
    ): "LearnableExponentialDecay(input_size, init_tau): the memory is an exact recursion",
    ("NeuralModel.from_pretrained", "repo_id_or_path"): "repo_or_path",
    ("NeuralModel.save_pretrained", "save_dir"): "directory",
    ("compute_CCmax", "max_iters"): "n_splits",
    ("get_CFs", "n_freqs"): "n",
    ("make_prefiltering", "kernel_size"): "make_prefiltering(kind, F, dt): the memory is an exact recursion",
    ("make_prefiltering", "n_freqs"): "n_frequency_bands",
    ("normalized_corrcoef", "ccmax_iters"): "n_splits",
}


def find_moved(place: str, name: str) -> Any:
    """Value of a name that left a module, with a DeprecationWarning; AttributeError for any other name.

    The module keeps the value, so that a name warns once. A name that meant something else is an ImportError
    (of an AttributeError ``from ... import`` would lose the text).
    """
    if (place, name) in CHANGED:
        raise ImportError(f"{place}.{name} of the earlier deepSTRF is now: {CHANGED[place, name]}")
    if (place, name) not in NAMES:
        raise AttributeError(f"module {place!r} has no attribute {name!r}")
    new_place, new_name = NAMES[place, name]
    warnings.warn(
        f"{place}.{name} is now {new_place}.{new_name}: from {new_place} import {new_name}",
        DeprecationWarning,
        stacklevel=3,
    )
    value = getattr(importlib.import_module(new_place), new_name)
    setattr(importlib.import_module(place), name, value)
    return value


def find_moved_attribute(dataset: object, name: str) -> Any:
    """Earlier call of a dataset: works and warns where it only read; else an error that shows the new one."""
    if name in GETTERS:
        shown, read = GETTERS[name]
        warnings.warn(f"ds.{name}() is now {shown}", DeprecationWarning, stacklevel=3)
        return lambda: read(dataset)
    if (DATASET, name) in CHANGED:
        raise AttributeError(
            f"{name} changed a dataset in place in the earlier deepSTRF; here a view or a table is "
            f"returned and the source stays as it is: {CHANGED[DATASET, name]}"
        )
    raise AttributeError(f"{type(dataset).__name__!r} object has no attribute {name!r}")


def earlier_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: earlier keywords of `KEYWORDS` work and warn, or raise an error that shows the new call."""
    call = function.__qualname__

    @functools.wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **rename_keywords(call, kwargs))

    return renamed


def rename_keywords(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under their names of today; a DeprecationWarning for each that had another."""
    refuse_keywords(call, given)
    found = {}
    for name, value in given.items():
        new = KEYWORDS.get((call, name), name)
        if new in found or (new != name and new in given):
            raise TypeError(f"{call} got {new!r} twice, also under its earlier name")
        if new != name:
            from deepSTRF._validation import outside_level  # inner: it loads NumPy

            message = f"{call}({name}=) is now {new}="
            warnings.warn(message, DeprecationWarning, stacklevel=outside_level())
        found[new] = value
    return found


def refuse_keywords(call: str, given: Mapping[str, Any]) -> None:
    """Raise a TypeError that shows the new call for a keyword that meant something else."""
    for name in given:
        new = KEYWORDS.get((call, name), name)
        if not new.isidentifier():
            raise TypeError(f"{call}({name}=) of the earlier deepSTRF is now: {new}")


class MovedModules(MetaPathFinder, Loader):
    """Import hook for the old modules of `MODULES`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Specification of an old module; None for every other one."""
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill an old module with the names of the new ones; what moved elsewhere is found on use."""
        places = MODULES[module.__name__]
        warnings.warn(
            f"the module {module.__name__} is now {' and '.join(places)}", DeprecationWarning, stacklevel=2
        )
        for place in reversed(places):
            new = importlib.import_module(place)
            names = {*new.__all__, *(name for name in vars(new) if name[:1] != "_")}  # a face may load on use
            module.__dict__.update({name: getattr(new, name) for name in names})
        module.__dict__["__getattr__"] = functools.partial(find_moved, module.__name__)
