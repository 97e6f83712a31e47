"""What a model was fitted on: part of the model, saved with it, and compared wherever a dataset meets it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import checked, first_names, outside_level

__all__ = [
    "FittedOn",
    "band_moments",
    "bin_width_ms",
    "check_lag_bins",
    "check_response_unit",
    "check_views",
    "matching_outputs",
    "n_trained_on",
    "output_names",
    "remember_fit",
    "warn_of_empty_bands",
]

#: Bin widths and rates that differ by less are the same but for rounding; single precision for frequencies.
RELATIVE, RELATIVE_HZ = 1e-9, 1e-6
#: Names that `from_arrays` gives to neurons without one.
INVENTED = re.compile(r"neuron(\d{3,})")
#: Entries that another front-end makes void.
STIMULI = (
    "audio_fs", "hop", "n_bands", "frequencies_hz", "features", "feature_rows", "level", "standardized",
    "look_ahead_ms",
)  # fmt: skip
#: Unit of responses that state none; it is not compared.
UNSTATED = "arbitrary units"
#: A standard deviation below this fraction of the mean is rounding noise of a constant band.
RELATIVE_NOISE = 1e-7
#: A band whose centre lies this much outside of the range of the sounds still hears its edge.
BAND_SLACK = 1.1
#: Bands that a warning lists one by one.
MOST_LISTED = 4
#: What a record holds, by a word in the annotation.
_KINDS: dict[str, type | tuple[type, ...]] = {"str": str, "bool": bool, "float": (int, float), "int": int}
#: How to go on all the same.
SWITCH_OFF = "model.fitted_on = None switches this check off"


@checked
@dataclass(frozen=True)
class FittedOn:
    """Recording that a model was fitted on: neurons, bins, bands or sample rate, units and sounds.

    A fit sets ``model.fitted_on``, a checkpoint holds it, and fits, predictions, scores and evaluations
    compare their dataset with it. Entries that are None or empty are unknown, and not compared.
    ``model.fitted_on = None`` switches the comparison off.

    Attributes
    ----------
    neurons : tuple of str
        Names of the N neurons in the order of the model's outputs: ``cell_id`` or ``name`` of the metadata,
        with "dataset/" before it in a joined recording.
    dt_ms : float or None
        Bin width in ms.
    audio_fs, hop : float or None, int or None
        Sample rate in Hz and samples per bin of waveforms.
    n_bands, frequencies_hz : int or None, tuple of float or None
        Bands of spectrograms and their centre frequencies in Hz.
    features, feature_rows : tuple of str or None, tuple of int or None
        Names of the features of the stimuli, in the order of their rows, and the number of rows of each.
    response_unit, response_kind, level : str or None
        Unit and kind of the responses, level of the sounds, as the dataset states them.
    standardized : bool or None
        Whether the dataset had standardised the stimuli.
    look_ahead_ms : float or None
        How far the frames of spectrograms look ahead, where the dataset states it (NS1's two alignments).
    sounds, validation_sounds : tuple of str
        Fingerprints of the sounds (``source_fingerprint``) that trained the model, and that chose its epoch
        or penalty.
    rms : float or None
        Root mean square of the waveforms that trained the model, over all their samples.
    recording : str or None
        SHA-256 of the clips that trained and validated, stimuli and recorded responses, in any order.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=2)
    >>> fitted = FittedOn.of(ds)
    >>> fitted.neurons, fitted.dt_ms, fitted.n_bands, len(fitted.sounds)
    (('sim000', 'sim001', 'sim002'), 5.0, 24, 2)
    >>> fitted.match(ds.select(neurons=[2, 0]))
    [2, 0]
    """

    neurons: tuple[str, ...] = ()
    dt_ms: float | None = None
    audio_fs: float | None = None
    hop: int | None = None
    n_bands: int | None = None
    frequencies_hz: tuple[float, ...] | None = None
    features: tuple[str, ...] | None = None
    feature_rows: tuple[int, ...] | None = None
    response_unit: str | None = None
    response_kind: str | None = None
    level: str | None = None
    standardized: bool | None = None
    look_ahead_ms: float | None = None
    sounds: tuple[str, ...] = ()
    validation_sounds: tuple[str, ...] = ()
    rms: float | None = None
    recording: str | None = None

    @classmethod
    @checked
    def of(
        cls,
        dataset: Any,
        validation: Any = None,
        *,
        clips: Iterable[int] | None = None,
        validation_clips: Iterable[int] | None = None,
    ) -> Self:
        """Describe the recording of a fit.

        Parameters
        ----------
        dataset : DatasetLike
            Training clips.
        validation : DatasetLike, optional
            Validation clips.
        clips, validation_clips : iterable of int, optional
            Those of ``dataset`` that train and of ``validation`` that validate; None is all.

        Returns
        -------
        FittedOn
            What the dataset states.
        """
        clips, validation_clips = (
            None if which is None else list(which) for which in (clips, validation_clips)
        )
        heard = () if validation is None else _sounds(validation, validation_clips)
        content = _content(
            (dataset, clips), *(() if validation is None else ((validation, validation_clips),))
        )
        return cls(
            **_facts(dataset),
            sounds=_sounds(dataset, clips),
            validation_sounds=heard,
            rms=_rms(dataset, clips),
            recording=content,
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what a checkpoint holds; later entries are left out, other types a TypeError."""
        if not isinstance(record, Mapping):
            raise TypeError(f"the record of the fit is {record!r:.80}")
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(cls):
            if entry.name not in record:
                continue
            value = record[entry.name]
            listed = isinstance(entry.default, tuple) or ("tuple" in str(entry.type) and value is not None)
            if isinstance(value, list) is not listed:
                raise TypeError(f"{entry.name} of the fit is {value!r:.80}")
            kinds = next(kinds for word, kinds in _KINDS.items() if word in str(entry.type))
            if not all(one is None or isinstance(one, kinds) for one in (value if listed else [value])):
                raise TypeError(f"{entry.name} of the fit is {value!r:.80}, not {entry.type}")
            values[entry.name] = tuple(value) if listed else value
        return cls(**values)

    def feature_sizes(self) -> dict[str, int]:
        """Return the number of rows of each feature by its name; empty where features have no names."""
        return dict(zip(self.features or (), self.feature_rows or (), strict=False))

    def match(self, dataset: Any) -> list[int]:
        """Compare a dataset with the recording of the fit, and find its neurons by name.

        Parameters
        ----------
        dataset : DatasetLike
            Any recording of some of the model's neurons, in any order.

        Returns
        -------
        list of int
            For each neuron of the dataset the index of the model's output.

        Raises
        ------
        ValueError
            When bins, bands, sample rate, level or standardisation differ, or neurons are unknown or named
            twice; the text says how to go on.

        Warns
        -----
        UserWarning
            When the neurons of the dataset have no names and those of the fit had: they are taken in order.
        """
        self._check_stimuli(dataset, "the dataset", "the model was fitted on")
        order = self._neurons_of(dataset, "the dataset", "the model was fitted on")
        return list(range(int(dataset.N_neurons))) if order is None else order

    def check_same(self, dataset: Any, what: str, than: str, *, responses: bool = True) -> None:
        """Raise ValueError unless a dataset has the same neurons in the same order, bins, bands and unit.

        ``what`` names the dataset in the text, ``than`` the recording it is compared with.
        """
        self._check_stimuli(dataset, what, than)
        order = self._neurons_of(dataset, what, than)
        if order is not None and order != list(range(len(self.neurons))):
            every = len(order) == len(self.neurons)
            cure = f"dataset.select(neurons={[order.index(k) for k in range(len(order))]})" if every else ""
            cure = cure or "make both with dataset.select(neurons=...) from one recording"
            how = "the same neurons in another order" if every else f"{len(order)} of the neurons"
            raise ValueError(f"{what} has {how} than {than} ({first_names(self.neurons)}): {cure}")
        if responses:
            self.check_unit(dataset, what, than)

    def check_unit(self, dataset: Any, what: str, than: str) -> None:
        """Raise ValueError when the responses are in another unit."""
        unit = _unit(dataset)
        if unit is not None and self.response_unit is not None and unit != self.response_unit:
            raise ValueError(
                f"{what} has responses in {unit!r} ({than} {self.response_unit!r}): bring both to one unit "
                f"(dataset.normalized(...), or response_unit= of from_arrays, which states it); {SWITCH_OFF}"
            )

    def without_neurons(self) -> Self:
        """Return what still holds for another population, for which the readout is to be fitted anew."""
        return dataclasses.replace(self, neurons=(), response_unit=None, response_kind=None)

    def without_stimuli(self) -> Self:
        """Return what still holds behind another front-end."""
        unknown: dict[str, Any] = dict.fromkeys(STIMULI)
        return dataclasses.replace(self, **unknown)

    def _check_stimuli(self, dataset: Any, what: str, than: str) -> None:
        """Raise ValueError for another bin width, sample rate, level or other bands."""
        facts = _stimulus_facts(dataset)
        differences = self._other_features(facts, than)
        for name, text in (
            ("dt_ms", "bins of {:.12g} ms"), ("audio_fs", "sounds at {:.12g} Hz"), ("n_bands", "{} bands"),
            ("hop", "bins of {} samples"), ("level", "sounds of level {!r}"),
            ("standardized", "stimuli standardised by the dataset: {}"),
            ("look_ahead_ms", "spectrograms that look {:g} ms ahead"),
        ):  # fmt: skip
            ours, theirs = getattr(self, name), facts[name]
            if ours is None or theirs is None or ours == theirs:
                continue
            if isinstance(ours, float) and math.isclose(ours, theirs, rel_tol=RELATIVE):
                continue
            differences.append(f"{text.format(theirs)} ({than} {text.format(ours)})")
        ours, theirs = self.frequencies_hz, facts["frequencies_hz"]
        if ours and theirs and len(ours) == len(theirs) and not np.allclose(ours, theirs, RELATIVE_HZ, 0.0):
            span = "bands from {:.6g} to {:.6g} Hz"
            texts = span.format(theirs[0], theirs[-1]), span.format(ours[0], ours[-1])
            differences.append(f"{texts[0]} ({than} {texts[1]})")
        if differences:
            raise ValueError(
                f"{what} has {'; '.join(differences)}: make its stimuli and responses as those of the fit "
                f"(dt_ms, bands, sample rate, level, alignment), or fit a model to it; {SWITCH_OFF}"
            )

    def _other_features(self, facts: Mapping[str, Any], than: str) -> list[str]:
        """What differs in names, order or rows of features."""
        ours = self.feature_sizes()
        theirs = dict(zip(facts["features"] or (), facts["feature_rows"] or (), strict=False))
        if not ours or not theirs or list(ours.items()) == list(theirs.items()):
            return []
        order = list(self.features or ())
        cure = f", which dataset.select(features={order}) gives" if set(order) <= set(theirs) else ""
        if any(theirs.get(name, rows) != rows for name, rows in ours.items()):
            return [f"features with the rows {theirs} ({than} {ours})"]
        return [f"the features {', '.join(theirs)} ({than} {', '.join(ours)}{cure})"]

    def _neurons_of(self, dataset: Any, what: str, than: str) -> list[int] | None:
        """Output of each neuron of a dataset; None where one side says nothing about its neurons."""
        names = _names(dataset)
        if names is None or not self.neurons:
            return None
        if names == self.neurons:
            return list(range(len(names)))
        bare, ours_bare = _are_invented(names), _are_invented(self.neurons)
        if bare != ours_bare:
            return self._by_place(dataset, names, what, than)
        fresh = getattr(dataset, "I", None) is None and names == _invented(range(len(names)))
        if bare and fresh:
            raise ValueError(
                f"{what} has {len(names)} neurons without names and {than} {len(self.neurons)} without "
                f"names, and nothing says which is which: nrn_meta=[{{'cell_id': ...}}, ...] names them; "
                f"{SWITCH_OFF}"
            )
        where: dict[str, list[int]] = {}
        for index, name in enumerate(self.neurons):
            where.setdefault(name, []).append(index)
        unknown = [name for name in names if name not in where]
        if unknown:
            known = [index for index, name in enumerate(names) if name in where]
            cure = f"dataset.select(neurons={known}) has the others" if known else "fit a model to it"
            raise ValueError(
                f"{what} has {len(unknown)} neurons that are unknown: {first_names(unknown)} ({than} "
                f"{first_names(self.neurons)}). {cure}; {SWITCH_OFF}"
            )
        twice = sorted({name for name in names if names.count(name) > 1 or len(where[name]) > 1})
        if twice:
            raise ValueError(
                f"{what} cannot be matched by name: {first_names(twice)} stands for several neurons. Give "
                f"each its own cell_id, or select each once (dataset.select(neurons=...)); {SWITCH_OFF}"
            )
        return [where[name][0] for name in names]

    def _by_place(self, dataset: Any, names: tuple[str, ...], what: str, than: str) -> list[int]:
        """Outputs by the places of neurons in their recording: one side has no names.

        A recording without names meets a model that knows some with a warning.
        """
        found = [INVENTED.fullmatch(name) for name in names]
        places = [int(one[1]) for one in found if one] or list(
            getattr(dataset, "I", None) or range(len(names))
        )
        bare, cure = ("it", what) if found[0] else ("the recording of the fit", "that recording")
        if sorted(places) != list(range(len(self.neurons))):
            raise ValueError(
                f"{what} has {len(names)} neurons ({first_names(names)}) and {than} {len(self.neurons)} "
                f"({first_names(self.neurons)}); {bare} has no names to match them by: name the neurons of "
                f"{cure}, nrn_meta=[{{'cell_id': ...}}, ...]; {SWITCH_OFF}"
            )
        if found[0]:
            warnings.warn(
                f"the neurons of {what} have no names and are taken in their order: the first of them for "
                f"{self.neurons[places[0]]}. Name them, nrn_meta=[{{'cell_id': ...}}, ...]; {SWITCH_OFF}",
                UserWarning,
                stacklevel=outside_level(),
            )
        return places


def _facts(dataset: Any) -> dict[str, Any]:
    """Entries of `FittedOn` that a dataset states, without its sounds."""
    return {
        **_stimulus_facts(dataset),
        "neurons": _names(dataset) or (),
        "response_unit": _unit(dataset),
        "response_kind": getattr(dataset, "response_kind", None),
    }


def _unit(dataset: Any) -> str | None:
    unit = getattr(dataset, "response_unit", None)
    return None if unit == UNSTATED else unit


def _stimulus_facts(dataset: Any) -> dict[str, Any]:
    waveform = bool(getattr(dataset, "return_waveform", getattr(dataset, "audio_fs", None) is not None))
    dt = getattr(dataset, "dt", None)
    facts: dict[str, Any] = {"dt_ms": None if dt is None else float(dt), **dict.fromkeys(STIMULI)}
    if waveform:
        rate = getattr(dataset, "audio_fs", None)
        facts |= {"audio_fs": None if rate is None else float(rate), "hop": getattr(dataset, "hop", None)}
        facts["level"] = getattr(dataset, "level", None)
    else:
        hertz = getattr(dataset, "frequencies_hz", None)
        facts["n_bands"] = getattr(dataset, "F", None) or _bands_of(dataset)
        features = getattr(dataset, "features", None)
        if isinstance(features, dict) and features:
            facts |= {"features": tuple(features), "feature_rows": tuple(features.values())}
            known = getattr(dataset, "feature_frequencies", {})
            hertz = [value for name in features for value in known.get(name, ())] or None
        facts["frequencies_hz"] = None if hertz is None else tuple(float(value) for value in hertz)
        ahead = getattr(dataset, "facts", {}).get("look_ahead_ms")
        facts["look_ahead_ms"] = None if ahead is None else float(ahead)
    if hasattr(dataset, "stim_normalization"):
        facts["standardized"] = dataset.stim_normalization is not None
    return facts


def _bands_of(dataset: Any) -> int | None:
    stims: Any = getattr(dataset, "stims", ())
    return int(stims[0].shape[-2]) if len(stims) and stims[0].ndim >= 3 else None


def _names(dataset: Any) -> tuple[str, ...] | None:
    """Names of a dataset's neurons; the place in the recording stands for one without a name."""
    rows = getattr(dataset, "nrn_meta", None)
    if rows is None:
        return None
    places = getattr(dataset, "I", None) or range(len(rows))
    names = []
    for row, place in zip(rows, places, strict=False):
        given = next((row[key] for key in ("cell_id", "name") if row.get(key) is not None), None)
        name = f"neuron{place:03d}" if given is None else str(given)
        names.append(f"{row['dataset']}/{name}" if "dataset" in row else name)
    return tuple(names)


def _invented(places: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"neuron{place:03d}" for place in places)


def _are_invented(names: Sequence[str]) -> bool:
    return all(INVENTED.fullmatch(name) for name in names)


def _sounds(dataset: Any, clips: Iterable[int] | None) -> tuple[str, ...]:
    """Distinct fingerprints of the sounds of some clips."""
    fingerprint = getattr(dataset, "source_fingerprint", getattr(dataset, "fingerprint", None))
    if fingerprint is None:
        return ()
    return tuple(
        dict.fromkeys(fingerprint(clip) for clip in (range(len(dataset)) if clips is None else clips))
    )


def _rms(dataset: Any, clips: Iterable[int] | None) -> float | None:
    """Root mean square of the waveforms of some clips, whatever their order; None of spectrograms."""
    stims: Any = getattr(dataset, "stims", None)
    if stims is None or _stimulus_facts(dataset)["audio_fs"] is None:
        return None
    sums, count = [], 0
    for clip in range(len(dataset)) if clips is None else clips:
        samples = stims[clip]
        sums.append(float(samples.double().square().sum()))
        count += samples.numel()
    # six digits: processors add in other orders
    return float(f"{math.sqrt(math.fsum(sums) / count):.6g}") if count else None


def _content(*parts: tuple[Any, Iterable[int] | None]) -> str | None:
    """One fingerprint of the recorded clips of some datasets; None where one of them has none to give."""
    found: set[str] = set()
    for dataset, clips in parts:
        fingerprint = getattr(dataset, "clip_fingerprint", None)
        if fingerprint is None:
            return None
        found.update(fingerprint(clip) for clip in (range(len(dataset)) if clips is None else clips))
    return hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()


# ---- what fits, predictions and scores call


def remember_fit(model: nn.Module, train: Any, validation: Any = None, **clips: Iterable[int] | None) -> None:
    """Set ``model.fitted_on`` at the start of a fit; of a model fitted before, compare it first."""
    before = getattr(model, "fitted_on", None)
    if before is not None and not isinstance(before, FittedOn):
        return  # an attribute of the user's own
    if not (hasattr(train, "nrn_meta") and hasattr(train, "dt")):
        return  # no recording, but data of a user's own loader
    check_lag_bins(model, train)
    if before is not None:
        before.check_same(train, "the training data", "the model was fitted before on", responses=False)
    with contextlib.suppress(AttributeError, TypeError, RuntimeError):  # a module that takes no attributes
        fitted = FittedOn.of(train, validation, **clips)
        if before is not None:  # a core that was transferred, or a fit that goes on, has heard those too
            fitted = dataclasses.replace(
                fitted,
                sounds=tuple(dict.fromkeys((*before.sounds, *fitted.sounds))),
                validation_sounds=tuple(
                    dict.fromkeys((*before.validation_sounds, *fitted.validation_sounds))
                ),
            )
        model.fitted_on = fitted  # type: ignore[assignment]


def bin_width_ms(model: Any) -> float | None:
    """Width of a model's bins in ms, by its front-end, its fit or its lags; None where none of them says."""
    front_end = getattr(model, "wav2spec", None)
    hop, rate = getattr(front_end, "hop", None), getattr(front_end, "audio_fs", None)
    if hop and rate:
        return 1000.0 * int(hop) / float(rate)
    known = getattr(getattr(model, "fitted_on", None), "dt_ms", None)
    return known if known is not None else getattr(model, "lag_bin_ms", None)


def check_lag_bins(model: Any, dataset: Any) -> None:
    """Raise ValueError when lags in ms meet bins of another width, or lags into the future end in windows."""
    bins, dt = getattr(model, "lag_bin_ms", None), getattr(dataset, "dt", None)
    if bins is not None and dt is not None and not math.isclose(bins, dt, rel_tol=RELATIVE):
        raise ValueError(
            f"the lags of this model were given in ms for bins of {bins:.9g} ms, and the dataset has bins of "
            f"{dt:.9g} ms: build it with dt_ms=dataset.dt"
        )
    context, ahead = getattr(dataset, "context_bins", None), getattr(model, "lookahead_frames", 0)
    if ahead and context is not None and any(context(clip) for clip in range(len(dataset))):
        raise ValueError(
            f"the model looks {ahead} bins ahead; windows hold what comes before them, and nothing after: "
            "take the recording itself, or dataset.cut(...) where zeros after a clip will do"
        )


def matching_outputs(model: Any, dataset: Any) -> list[int] | None:
    """Return the model's output for each neuron of a dataset; None for its outputs as they are."""
    fitted = getattr(model, "fitted_on", None)
    if not isinstance(fitted, FittedOn):
        return None
    fitted._check_stimuli(dataset, "the dataset", "the model was fitted on")
    order = fitted._neurons_of(dataset, "the dataset", "the model was fitted on")
    return None if order == list(range(len(fitted.neurons))) else order


def output_names(model: Any) -> list[str]:
    """Names of the outputs of a model: those of the recording of its fit, else their numbers."""
    names = list(getattr(getattr(model, "fitted_on", None), "neurons", ()))
    return names if len(names) == model.O else list(_invented(range(model.O)))


def check_response_unit(model: Any, dataset: Any) -> None:
    """Raise ValueError when the responses of a dataset are in another unit than a model's predictions."""
    fitted = getattr(model, "fitted_on", None)
    if isinstance(fitted, FittedOn):
        fitted.check_unit(dataset, "the dataset", "the fit")


def n_trained_on(model: Any, dataset: Any) -> int | None:
    """Number of clips of a dataset whose sounds trained a model or chose its epoch; None: not known."""
    fitted = getattr(model, "fitted_on", None)
    fingerprint = getattr(dataset, "source_fingerprint", None)
    if not isinstance(fitted, FittedOn) or fingerprint is None:
        return None
    used = {*fitted.sounds, *fitted.validation_sounds}
    return sum(fingerprint(clip) in used for clip in range(len(dataset)))


def check_views(views: Sequence[Any], names: Sequence[str]) -> None:
    """Raise ValueError unless all views have the neurons, bins, bands and unit of the first."""
    first = FittedOn(**_facts(views[0]))
    for view, name in zip(views[1:], names[1:], strict=True):
        first.check_same(view, name, f"{names[0]} has")


# ---- Statistics of the bands


#: Clips are measured together up to so many frames.
FRAMES_AT_ONCE = 4096


def band_moments(spectrograms: Iterable[Tensor], n_bands: int) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation (F,) of each band over all frames (..., F, T), in float64.

    The deviation of a constant band is 0.
    """
    count = 0
    mean, squares = (torch.zeros(n_bands, dtype=torch.float64) for _ in range(2))
    for frames in _band_frames(spectrograms, n_bands):
        n = frames.shape[0] * frames.shape[2]
        own_mean = frames.mean((0, 2))
        shift = own_mean - mean
        # Chan, Golub & LeVeque 1983: pairwise update, exact for constant bands
        own_squares = frames.sub_(own_mean.unsqueeze(1)).square_().sum((0, 2))
        squares += own_squares + shift**2 * (count * n / (count + n))
        mean += shift * (n / (count + n))
        count += n
    if count == 0:
        raise ValueError("cannot standardise from no frames: give at least one training clip")
    std = (squares / count).sqrt()
    std[std <= RELATIVE_NOISE * mean.abs()] = 0.0
    return mean, std


def _band_frames(clips: Iterable[Tensor], n_bands: int) -> Iterator[Tensor]:
    """Frames (clips, F, T), copies in float64, checked; short clips together: a few operations serve many."""
    held: list[Tensor] = []
    n_frames = first = index = 0
    for index, clip in enumerate(clips):
        if clip.ndim < 2 or clip.shape[-2] != n_bands:
            raise ValueError(f"clip {index} must be (..., {n_bands}, T), got {tuple(clip.shape)}")
        held.append(clip.detach().reshape(-1, *clip.shape[-2:]))
        n_frames += clip.numel() // max(1, n_bands)
        if n_frames >= FRAMES_AT_ONCE:
            yield _joined(held, first, index)
            held, n_frames, first = [], 0, index + 1
    if n_frames:
        yield _joined(held, first, index)


def _joined(held: Sequence[Tensor], first: int, last: int) -> Tensor:
    """Spectrograms (..., F, T) together in float64: of one length as a stack, others one after the other."""
    if len({clip.shape[-1] for clip in held}) > 1:
        held = [torch.cat([one for clip in held for one in clip], dim=-1).unsqueeze(0)]
    frames = torch.cat(list(held)).cpu()
    if not bool(torch.isfinite(frames.sum())) and not bool(torch.isfinite(frames).all()):
        which = f"clip {first}" if first == last else f"one of the clips {first} to {last}"
        raise ValueError(f"{which} holds values that are not finite; remove them before standardising")
    return frames.double()


def warn_of_empty_bands(front_end: Any, std: Tensor, occupied: tuple[float, float] | None) -> None:
    """Warn of bands outside of the range of the training sounds, and of bands that do not vary in them."""
    name = type(front_end).__name__
    try:
        hertz = getattr(front_end, "frequencies_hz", None)
    except NotImplementedError:
        hertz = None
    empty = torch.zeros(len(std), dtype=torch.bool)
    if hertz is not None and occupied is not None:
        low, high = occupied
        hertz = torch.as_tensor(hertz).detach().cpu()
        empty = (hertz > high * BAND_SLACK) | (hertz < low / BAND_SLACK)
        if bool(empty.any()) and not bool(empty.all()):
            above, below = (bool((empty & side).any()) for side in (hertz > high, hertz < low))
            edges = [*([f"f_min={low:.0f}"] if below else []), *([f"f_max={high:.0f}"] if above else [])]
            warnings.warn(
                f"{int(empty.sum())} of {len(std)} bands of {name} (at {_listed(hertz[empty])} Hz) hold no "
                f"power in the training sounds, which lie between {low:.0f} and {high:.0f} Hz: what is "
                f"fitted there is noise. Build the front-end with {', '.join(edges)}",
                UserWarning,
                stacklevel=outside_level(),
            )
    constant = (std == 0).cpu() & ~empty
    if bool(constant.any()) and not bool(constant.all()):  # all of them: the sounds are too quiet, or silent
        where = f"band(s) {_listed(constant.nonzero().flatten())} (counted from 0)"
        if hertz is not None:
            where = f"band(s) at {_listed(hertz[constant])} Hz"
        warnings.warn(
            f"{where} never vary in the training clips: receptive fields leave them out (0 per standard "
            "deviation). Leave such bands out of the spectrograms",
            UserWarning,
            stacklevel=outside_level(),
        )


def _listed(values: Tensor) -> str:
    """A few numbers as text: all of up to four, else the ends."""
    numbers = [f"{float(value):.0f}" for value in values]
    return ", ".join(numbers) if len(numbers) <= MOST_LISTED else f"{numbers[0]} to {numbers[-1]}"
