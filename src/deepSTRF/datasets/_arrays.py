"""From plain arrays to a dataset: the working part of ``from_arrays``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepSTRF.datasets._pack import as_array, check_outer, pack_responses
from deepSTRF.datasets.storage import ResponseStorage

if TYPE_CHECKING:
    from deepSTRF.datasets.base import NeuralDataset

_TRIM = "from_arrays(..., on_length_mismatch='trim') cuts both to the shorter"


def as_float32(values: Any, what: str) -> Tensor:
    """A float32 copy of an array, tensor or nested list."""
    return torch.from_numpy(as_array(values, what).astype("float32"))


def as_spectrogram(values: Any, where: str) -> Tensor:
    """(1, F, T) from (F, T) or (1, F, T); arrays of higher rank (videos) stay as they are."""
    stimulus = as_float32(values, f"stimulus of {where}")
    if stimulus.ndim < 2:
        raise ValueError(
            f"stimulus of {where}: a spectrogram is (F, T) or (1, F, T), got shape {tuple(stimulus.shape)}; "
            "for waveforms use AudioNeuralDataset.from_arrays(..., audio_fs=<sample rate in Hz>)"
        )
    return stimulus[None] if stimulus.ndim == 2 else stimulus


def fill(
    ds: NeuralDataset,
    stims: Sequence[Any],
    responses: Sequence[Any],
    stim_meta: Sequence[dict[str, Any]] | None,
    nrn_meta: Sequence[dict[str, Any]] | None,
    name: str | None,
    on_length_mismatch: str,
) -> None:
    """Put arrays and metadata into an empty dataset; it still has to be validated."""
    if on_length_mismatch not in ("error", "trim"):
        raise ValueError(f"on_length_mismatch is 'error' or 'trim', got {on_length_mismatch!r}")
    check_outer(responses)
    if len(stims) != len(responses) or len(stims) == 0:
        raise ValueError(
            "stims and responses need one entry per clip and at least one clip, "
            f"got {len(stims)} and {len(responses)}"
        )
    storage = pack_responses(responses, None if nrn_meta is None else len(nrn_meta), copy=True)
    stimuli = [ds._as_stimulus(values, f"clip {clip}") for clip, values in enumerate(stims)]
    ds.N_neurons = storage.n_neurons
    ds.stim_meta = _metadata(stim_meta, len(stimuli), "stim_meta", "name", "clip")
    ds.nrn_meta = _metadata(nrn_meta, storage.n_neurons, "nrn_meta", "cell_id", "neuron")
    if name is not None:
        ds.name = name
    ds.stims = stimuli
    ds._storage = storage
    ds.load_report.kept += [str(row.get("cell_id", row.get("name", n))) for n, row in enumerate(ds.nrn_meta)]
    _match_lengths(ds, trim=on_length_mismatch == "trim")


def _metadata(
    given: Sequence[dict[str, Any]] | None, count: int, what: str, key: str, word: str
) -> list[dict[str, Any]]:
    if given is None:
        return [{key: f"{word}{index:03d}"} for index in range(count)]
    if len(given) != count:
        raise ValueError(f"{what} has {len(given)} entries for {count} {word}s; give one dictionary each")
    return [dict(row) for row in given]


def _match_lengths(ds: NeuralDataset, *, trim: bool) -> None:
    """Compare, and where asked cut, the stimulus and the responses of every clip."""
    stimuli, clips, changed = list(ds.stims), list(ds.response_storage.clips), False
    per_bin = ds.samples_per_bin
    for clip, stimulus in enumerate(stimuli):
        bins, rest = divmod(stimulus.shape[-1], per_bin)
        recorded = clips[clip].n_bins if clips[clip].heard.size else bins
        if rest and not trim:
            raise ValueError(
                f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {per_bin} samples of one "
                f"bin; crop to {bins * per_bin}, or {_TRIM} (and to whole bins)"
            )
        reaching = clips[clip].first_reaching(bins) if recorded > bins else None
        if reaching is not None and not trim:
            turned = stimulus.ndim == 3 and stimulus.shape[-2] == recorded
            hint = (
                "a spectrogram is (F, T): is it transposed?" if turned else f"if both start together, {_TRIM}"
            )
            raise ValueError(
                f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms, neuron {reaching}) are "
                f"longer than the stimulus ({bins} bins); {hint}"
            )
        if recorded < bins and not trim:
            raise ValueError(
                f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms) are shorter than the "
                f"stimulus ({bins} bins); if both start together, {_TRIM}, or fill up the responses with NaN"
            )
        if recorded != bins or rest:  # bins without any value behind the stimulus go in either case
            common = min(recorded, bins)
            _note_trim(
                ds, clip, stimulus.shape[-1] - common * per_bin, 0 if reaching is None else recorded - bins
            )
            stimuli[clip] = stimulus[..., : common * per_bin].clone()
            clips[clip], changed = clips[clip].cropped(common), True
    if changed:
        ds.stims = stimuli
        ds._storage = ResponseStorage(clips, ds.response_storage.n_neurons)


def _note_trim(ds: NeuralDataset, clip: int, samples: int, bins: int) -> None:
    """Say in the load report what was cut off the end of a clip."""
    unit = "frames" if ds.samples_per_bin == 1 else "samples"
    cut = [f"the last {samples} {unit} of its stimulus"] if samples else []
    cut += [f"the last {bins} bins of its responses"] if bins else []
    if cut:
        ds.load_report.skip(f"clip {clip}", f"{' and '.join(cut)} cut by on_length_mismatch='trim'")
