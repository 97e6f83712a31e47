"""A model on live sound: chunks of any size in, the rates of all bins that they complete out.

`Stream` owns what the protocol of `deepSTRF.models.streaming` leaves to its caller: samples of a bin that is
not complete, the state of every stream of a batch, and which streams a chunk is for. A push is one call and
returns when its rates are there; nothing is queued, so a source that is faster than the model waits for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import (
    check_device,
    check_positive_int,
    checked,
    first_names,
    outside_level,
    to_tensor,
)
from deepSTRF.models import NeuralModel
from deepSTRF.models.configurable import check_has_values, placement
from deepSTRF.models.derived import frozen
from deepSTRF.models.fitted_on import FittedOn, bin_width_ms
from deepSTRF.models.streaming import (
    State,
    StreamAxis,
    algorithmic_latency_ms,
    map_state,
    state_of,
    state_tensors,
    stream_axes,
)
from deepSTRF.streaming.exported import ExportedModel

__all__ = ["Stream", "StreamTiming"]

#: Samples of one stream, or of a batch in step.
Samples: TypeAlias = "NDArray[Any] | Tensor"
#: Frames of all streams that one step computes, at most: what a push of an hour keeps in memory.
FRAMES_PER_STEP = 1024
#: Largest sample in units of the largest number: sums of a filter stay finite, else it rings for ever.
_OF_THE_RANGE = 2.0**-30
#: So many pushes are timed, the latest ones.
TIMED_PUSHES = 10_000
#: Frames of noise on which the ``step`` of classes of the user's own is compared with their ``forward``.
_PROBE_CUTS = (1, 2, 5)
#: Share of the range by which both may differ: float32 noise of any model, far below a wrong frame.
_PROBE_TOLERANCE = 1e-3
#: Names in a saved state beside those of the model's own parts.
_PART, _OWN = "state.", ("remainder", "remainder_samples", "frames", "model")


@dataclass(frozen=True)
class StreamTiming:
    """Measured speed of a `Stream`; made by `Stream.timing`.

    Attributes
    ----------
    chunks : int
        Pushes so far.
    frames : int
        Bins so far, of all streams.
    median_ms, p99_ms : float
        Median and 99th percentile of the latest 10,000 pushes in ms; NaN before the first.
    real_time_factor : float
        Seconds of sound per stream and second of computation: above 1 the model keeps up. NaN before the
        first bin, and where the bin width is not known.

    Examples
    --------
    >>> StreamTiming(chunks=200, frames=200, median_ms=0.4, p99_ms=0.9, real_time_factor=12.0)
    StreamTiming(chunks=200, frames=200, median_ms=0.4, p99_ms=0.9, real_time_factor=12.0)
    """

    chunks: int
    frames: int
    median_ms: float
    p99_ms: float
    real_time_factor: float


@checked
class Stream:
    """A model on one live stream of sound, or on a batch of independent ones.

    Rates equal those of ``model(whole sound)`` in eval mode for every cut of the sound into chunks, to 1e-6
    of their range in float32 (a few 1e-6 where float32 holds no more, page "Streams") and 1e-12 in float64.
    Where squares of samples overflow (1e18 in float32), both are NaN, and stay so while the model remembers
    the sample: until `reset`, with gain control. The stream runs a copy of the model in eval mode and without
    gradients, as the model is now: the model itself stays as it was, and what it learns later needs a new
    stream. One thread pushes at a time.

    Parameters
    ----------
    model : NeuralModel or ExportedModel
        Any causal model whose parts have ``init_state`` and ``step``; or its exported graph, which runs
        two to three times faster and agrees with it to 1e-5.
    batch : int
        Number of independent streams, B.
    dtype : {torch.float32, torch.float64}, optional
        Precision; None is that of the model. A graph has that of its export.
    device : torch.device or str, optional
        Where to run; None is where the model is. A graph runs on the CPU.

    Attributes
    ----------
    batch : int
        Number of streams, B.
    hop : int
        Samples per bin; 1 for a model without front-end, whose chunks are frames.
    audio_fs : float or None
        Sample rate in Hz; None without a front-end.
    dt_ms : float or None
        Bin width in ms; None where a model without front-end does not know it.
    n_neurons : int
        Neurons, N.
    neurons : tuple of str
        Their names in the recording of the fit; empty where the model was not fitted.
    frames : tuple of int
        Bins that each stream has given so far.
    dtype, device : torch.dtype, torch.device
        Precision and place of the computation.
    largest : float
        Largest sample that is taken: 3e29 in float32, 2e299 in float64.

    Raises
    ------
    TypeError
        When ``model`` is no model, or a part cannot run chunk by chunk; the text names it.
    ValueError
        When a part of the user's own gives other numbers chunk by chunk than at once, the model cannot
        stream (attention without a window, lags into the future), or it is on the meta device.

    Warns
    -----
    UserWarning
        For a model fitted on stimuli that the dataset had standardised: the pushed ones must be, too.

    Examples
    --------
    >>> import numpy as np
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import make_wav2spec
    >>> model = Linear(8, 5, out_neurons=3, wav2spec=make_wav2spec("mel", 16000, 5.0, n_filters=8))
    >>> sound = np.random.default_rng(0).standard_normal(800).astype(np.float32)
    >>> stream = Stream(model)
    >>> parts = [stream.push(chunk) for chunk in np.split(sound, [7, 300, 301])]
    >>> [part.shape for part in parts]                                  # (N, bins) of 80 samples
    [(3, 0), (3, 3), (3, 0), (3, 7)]
    >>> with torch.no_grad():
    ...     whole = model.eval()(torch.from_numpy(sound)[None, None])[0, :, 0]
    >>> bool(np.allclose(np.concatenate(parts, axis=-1), whole, atol=1e-5))
    True
    """

    def __init__(
        self,
        model: NeuralModel | ExportedModel,
        batch: int = 1,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.batch = check_positive_int("batch", batch)
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32, torch.float64 or None, got {dtype}")
        place = None if device is None else check_device(device)
        self._model: NeuralModel | ExportedModel
        if isinstance(model, ExportedModel):
            self._model = _graph_as_asked(model, dtype, place)
            self._hears, self.hop, self.audio_fs, self.dt_ms = (
                model.hears,
                model.hop,
                model.audio_fs,
                model.dt_ms,
            )
            self.device, self.dtype = torch.device("cpu"), model.dtype
        else:
            self._model = _copy_for_streams(model, dtype, place)
            front_end = self._model.wav2spec
            self._hears = not isinstance(front_end, nn.Identity)
            self.hop = int(front_end.hop) if self._hears else 1  # type: ignore[arg-type]
            self.audio_fs = front_end.audio_fs if self._hears else None  # type: ignore[assignment]
            self.dt_ms = bin_width_ms(self._model)
            self.device, kind = placement(self._model)
            self.dtype = kind if self._hears else self._model._precision()
        self.n_neurons = int(self._model.O)
        fitted_on = self._model.fitted_on
        self.neurons: tuple[str, ...] = () if fitted_on is None else fitted_on.neurons
        self._bands: int | None = None if self._hears else getattr(self._model, "F", None)
        self._axes = stream_axes(self._model)
        self._state = self._model.init_state(self.batch)
        self._check_steps()
        self._plain_dtype = np.float64 if self.dtype == torch.float64 else np.float32
        self._is_plain = self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64)
        half = self.dtype == torch.float16  # it has no range to spare
        self.largest = torch.finfo(self.dtype).max * (1.0 if half else _OF_THE_RANGE)
        self._most_energy = math.inf if self.dtype == torch.float64 else 0.5 * self.largest**2
        self._remainder = np.zeros((self.batch, 1, self.hop - 1), self._plain_dtype)
        self._held, self._frames = [0] * self.batch, [0] * self.batch
        self._everyone = list(range(self.batch))
        self._gives_tensors = False
        self._times, self._pushes, self._seconds, self._timed_frames = np.zeros(TIMED_PUSHES), 0, 0.0, 0

    @property
    def _name(self) -> str:
        """Class of the model."""
        return self._model.name if isinstance(self._model, ExportedModel) else type(self._model).__name__

    # ---- sound in, rates out

    def push(self, samples: Samples | Sequence[Samples], streams: int | Sequence[int] | None = None) -> Any:
        """Respond to the next samples.

        Parameters
        ----------
        samples : array, Tensor, or list of them
            Of floating point; with a front-end (n,) or (1, n) for one stream and (B, n) for a batch in step,
            at the model's sample rate; without one frames (F, n) or (B, F, n). A list holds one array per
            stream, of any lengths. n may be 0 or an hour: memory beyond the result is bounded. The samples
            are copied, never scaled.
        streams : int or sequence of int, optional
            The streams that the samples are for, in this order; ``samples`` are then as for a stream of so
            many. None is all.

        Returns
        -------
        ndarray or Tensor, or list of them
            Rates of all bins that are complete now, in the unit that the model predicts: (N, bins) for one
            stream, (B, N, bins) for a batch in step, a list of (N, bins) for a list. Arrays for arrays;
            tensors, on the stream's device, for tensors.

        Raises
        ------
        TypeError
            For integer, boolean or complex samples, and what is no array.
        ValueError
            For a wrong shape, samples that are NaN, infinite or above the range of the precision (`largest`),
            or an array for streams that hold different numbers of samples. No stream has changed then.
        IndexError
            For a stream that does not exist.
        """
        start = time.perf_counter()
        chosen = self._everyone if streams is None else self._chosen(streams)
        if isinstance(samples, list | tuple):
            pieces, tensors = self._one_by_one(chosen, samples), [isinstance(one, Tensor) for one in samples]
        else:
            pieces, tensors = [self._in_step(chosen, samples)], [isinstance(samples, Tensor)]
        made = self._respond(pieces, tensors)
        self._gives_tensors = tensors[0] if tensors else self._gives_tensors
        self._note(time.perf_counter() - start, sum(one.shape[0] * one.shape[-1] for one in made))
        if isinstance(samples, list | tuple):
            return [one[0] for one in made]
        return made[0] if len(chosen) > 1 else made[0][0]

    def flush(self) -> Any:
        """Complete the last bin of every stream with silence, and respond to it.

        Returns
        -------
        ndarray or Tensor, or list of them
            (N, 1), or (N, 0) where no bin was begun; (B, N, ...) for a batch in step, else a list. Arrays or
            tensors, as the last push gave.
        """
        missing = [(self.hop - held) % self.hop for held in self._held]
        shapes = [(n,) if self._bands is None else (self._bands, n) for n in missing]
        silence = [torch.zeros(shape, dtype=self.dtype) for shape in shapes]
        given = silence if self._gives_tensors else [one.numpy() for one in silence]
        made = self.push(given)
        if len(set(missing)) > 1:
            return made
        if self.batch == 1:
            return made[0]
        return torch.stack(made) if self._gives_tensors else np.stack(made)

    def reset(self, streams: int | Sequence[int] | None = None) -> None:
        """Put streams back to before their first sample; None is all. Measured times are kept.

        Parameters
        ----------
        streams : int or sequence of int, optional
            Which streams.

        Raises
        ------
        IndexError
            For a stream that does not exist.
        """
        chosen = self._everyone if streams is None else self._chosen(streams)
        if chosen:
            self._state = self._placed(self._state, chosen, self._model.init_state(len(chosen)))
        for stream in chosen:
            self._held[stream] = self._frames[stream] = 0

    @property
    def model(self) -> NeuralModel | ExportedModel:
        """The copy of the model that the stream runs, in eval mode, or the graph: not to be changed."""
        return self._model

    @property
    def frames(self) -> tuple[int, ...]:
        """Bins that each stream has given so far."""
        return tuple(self._frames)

    # ---- one push

    def _respond(self, pieces: list[_Piece], tensors: list[bool]) -> list[Any]:
        """Rates (k, N, bins) of each piece; streams with most bins go on when the others are done."""
        counts = [piece.n_samples // self.hop for piece in pieces]
        rates = [
            self._empty_rates(len(piece.streams), count, kind)
            for piece, count, kind in zip(pieces, counts, tensors, strict=True)
        ]
        state, done = self._state, 0
        for count in sorted(set(counts) - {0}):
            active = [place for place, n in enumerate(counts) if n >= count]
            streams = [stream for place in active for stream in pieces[place].streams]
            part = self._taken(state, streams)
            part = self._run([(pieces[place], rates[place]) for place in active], part, done, count)
            state, done = self._placed(state, streams, part), count
        tails = [
            self._cut([piece], count * self.hop, piece.n_samples)
            if piece.n_samples > count * self.hop
            else None
            for piece, count in zip(pieces, counts, strict=True)
        ]
        self._state = state  # nothing has changed up to here, whatever was raised
        for piece, count, tail in zip(pieces, counts, tails, strict=True):
            left = 0
            if tail is not None:
                left = tail.shape[-1]
                self._remainder[piece.streams, :, :left] = tail
            for stream in piece.streams:
                self._held[stream] = left
                self._frames[stream] += count
        return rates

    def _run(self, active: list[tuple[_Piece, Any]], state: State, first: int, last: int) -> State:
        """Write the rates of bins first to last of some pieces; return the next state."""
        pieces = [piece for piece, _ in active]
        most = max(1, FRAMES_PER_STEP // sum(len(piece.streams) for piece in pieces))
        for start in range(first, last, most):
            stop = min(start + most, last)
            chunk = torch.from_numpy(self._cut(pieces, start * self.hop, stop * self.hop))
            if not self._is_plain:
                chunk = chunk.to(self.device, self.dtype)
            with torch.inference_mode():
                made, state = self._model.step(chunk, state)
            plain = made.numpy() if self._is_plain else made.to("cpu", _plain_dtype(self.dtype)).numpy()
            row = 0
            for piece, rates in active:
                end = row + len(piece.streams)
                source = made if isinstance(rates, Tensor) else plain
                rates[..., start:stop] = source[row:end, :, 0]
                row = end
        return state

    def _cut(self, pieces: list[_Piece], start: int, stop: int) -> NDArray[Any]:
        """Copy of samples start to stop of some pieces, one under the other, as the model takes them."""
        rows = sum(len(piece.streams) for piece in pieces)
        out = np.empty((rows, 1, *pieces[0].sound.shape[1:-1], stop - start), self._plain_dtype)
        row = 0
        for piece in pieces:
            end = row + len(piece.streams)
            piece.copy_into(out[row:end, 0], start, stop)
            row = end
        return out

    def _empty_rates(self, count: int, n_frames: int, tensors: bool) -> Any:
        shape = (count, self.n_neurons, n_frames)
        if tensors:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        return np.empty(shape, self._plain_dtype)

    def _note(self, seconds: float, n_frames: int) -> None:
        self._times[self._pushes % TIMED_PUSHES] = seconds
        self._pushes += 1
        self._seconds += seconds
        self._timed_frames += n_frames

    # ---- checks of what is pushed

    def _one_by_one(self, chosen: list[int], samples: Sequence[Samples]) -> list[_Piece]:
        if len(samples) != len(chosen):
            raise ValueError(
                f"samples is a list of {len(samples)} arrays for {len(chosen)} streams: give one array per "
                "stream, of length 0 where there is nothing new"
            )
        return [
            self._piece([stream], f"samples[{place}]", one)
            for place, (stream, one) in enumerate(zip(chosen, samples, strict=True))
        ]

    def _in_step(self, chosen: list[int], samples: Any) -> _Piece:
        held = [self._held[stream] for stream in chosen]
        if not held:
            raise ValueError("streams=[] names no stream: samples must be an empty list then")
        if held.count(held[0]) < len(held):
            raise ValueError(
                f"the streams are not in step (samples of their incomplete bins: {held}): push samples as a "
                "list of one array per stream"
            )
        return self._piece(chosen, "samples", samples)

    def _piece(self, streams: list[int], name: str, samples: Any) -> _Piece:
        """Checked samples of some streams in step."""
        sound = self._shaped(len(streams), name, _as_floats(name, samples))
        self._check_finite(name, sound)
        held = self._held[streams[0]]
        rest = self._remainder[streams, 0, :held] if held else None
        return _Piece(streams, held, rest, sound)

    def _check_finite(self, name: str, sound: NDArray[Any]) -> None:
        """Raise a ValueError for values that are not finite, or not in this precision."""
        if sound.dtype in (np.float32, np.float64):  # their energy is one product, and says it at once
            flat = sound.reshape(-1)
            with np.errstate(over="ignore", invalid="ignore"):
                energy = float(np.dot(flat, flat))
            if energy < self._most_energy:
                return
        if sound.size and not (float(sound.min()) >= -self.largest and float(sound.max()) <= self.largest):
            raise ValueError(
                f"{name} holds values that are NaN, infinite or above the range of {self.dtype} (at most "
                f"{self.largest:.2g}, as filters sum them): nothing was pushed. A gap is silence: "
                "np.nan_to_num(samples, posinf=0, neginf=0)"
            )

    def _shaped(self, count: int, name: str, sound: NDArray[Any]) -> NDArray[Any]:
        """Samples (k, n), or frames (k, F, n)."""
        rank = 1 if self._hears else 2
        bands = None if self._hears else self._bands
        shape = sound.shape
        if sound.ndim == rank and count == 1:
            sound = sound[None]
        if sound.ndim != rank + 1 or len(sound) != count or (bands is not None and sound.shape[1] != bands):
            inner = "n" if self._hears else f"{'F' if bands is None else bands}, n"
            legal = f"({inner}) or (1, {inner})" if count == 1 else f"({count}, {inner})"
            what = "samples" if self._hears else "frames of the spectrogram"
            single = "; one frame (F,) is frame[:, None]" if not self._hears and len(shape) == 1 else ""
            raise ValueError(
                f"{name} must be {legal} {what} for {count} stream(s), got {shape}{single}. Streams with "
                "chunks of different lengths take a list of arrays; channels of one sound are mixed first"
            )
        return sound

    def _chosen(self, streams: int | Sequence[int]) -> list[int]:
        """Streams by number, each once."""
        if isinstance(streams, int | np.integer) and not isinstance(streams, bool):
            given = [int(streams)]
        elif isinstance(streams, str | bytes | bool) or not isinstance(
            streams, Sequence | np.ndarray | range
        ):
            raise TypeError(f"streams must be an integer, a list of integers or None, got {streams!r:.80}")
        else:
            given = []
            for one in streams:
                if isinstance(one, bool) or not isinstance(one, int | np.integer):
                    raise TypeError(f"streams must hold integers, got {one!r:.80} ({type(one).__name__})")
                given.append(int(one))
        for one in given:
            if not -self.batch <= one < self.batch:
                raise IndexError(
                    f"streams holds {one}, and this Stream has {self.batch} (0..{self.batch - 1}): "
                    "Stream(model, batch=...) sets how many"
                )
        chosen = [one % self.batch for one in given]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"streams names a stream twice: {given}; join its samples first")
        return chosen

    # ---- states of some of the streams

    def _taken(self, state: State, streams: list[int]) -> State:
        if streams == self._everyone:
            return state
        index = torch.tensor(streams, device=self.device)
        return map_state(
            lambda place, every: every.index_select(place.axis, _entries(index, place)), self._axes, state
        )

    def _placed(self, state: State, streams: list[int], part: State) -> State:
        if streams == self._everyone:
            return part
        index = torch.tensor(streams, device=self.device)
        return map_state(
            lambda place, every, new: every.index_copy(place.axis, _entries(index, place), new),
            self._axes,
            state,
            part,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the stream remembers, as a flat dictionary of tensors that share no memory.

        ``safetensors.torch.save_file(stream.state_dict(), path)`` keeps it in a file. It holds samples of
        incomplete bins, bins given so far, the state of every part, and a digest of the model.

        Returns
        -------
        dict of str to Tensor
            On the CPU.
        """
        parts = {_PART + name: part for name, part in state_tensors(self._state).items()}
        kept = {
            **parts,
            "remainder": torch.from_numpy(self._remainder),
            "remainder_samples": torch.tensor(self._held),
            "frames": torch.tensor(self._frames),
            "model": self._digest,
        }
        return {name: value.to("cpu", copy=True).contiguous() for name, value in kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another stream of the same model was when `state_dict` was called.

        Parameters
        ----------
        state : mapping of str to Tensor or array
            From `state_dict`, of a stream of as many streams; precision and device may differ.

        Raises
        ------
        TypeError, ValueError
            When it is no such state, of another model or another ``batch``. Nothing has changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a dictionary from stream.state_dict(), got {type(state).__name__}"
            )
        expected = {**{_PART + name: part for name, part in state_tensors(self._state).items()}}
        names = [*expected, *_OWN]
        missing, unknown = [n for n in names if n not in state], [n for n in state if n not in names]
        if missing or unknown:
            lacks = f"it lacks {first_names(missing)}" if missing else f"unknown: {first_names(unknown)}"
            raise ValueError(
                f"state is not one of a Stream of this {self._name}: {lacks}; take it from "
                "stream.state_dict() of a stream of the same model"
            )
        wrong = [name for name, value in state.items() if not isinstance(value, Tensor | np.ndarray)]
        if wrong:
            kind = type(state[wrong[0]]).__name__
            raise TypeError(f"state must hold tensors or arrays, got {kind} as {wrong[0]}")
        given = {name: to_tensor(value) for name, value in state.items()}
        if not torch.equal(given["model"].cpu(), self._digest):
            raise ValueError(
                f"state belongs to another model: its settings or weights are not those of this "
                f"{self._name}. A state goes with the model it was made with "
                "(model.save_pretrained keeps it)"
            )
        counts = [given[name] for name in ("frames", "remainder_samples")]
        if any(one.ndim != 1 or one.is_floating_point() or one.is_complex() for one in counts):
            raise ValueError(
                "frames and remainder_samples of the state must be (B,) integers: they were changed after "
                "stream.state_dict() made them"
            )
        batch = len(given["frames"])
        if batch != self.batch:
            raise ValueError(
                f"state holds {batch} streams, this one {self.batch}: Stream(model, batch={batch})"
            )
        expected["remainder"] = torch.from_numpy(self._remainder)
        for name, own in expected.items():
            if given[name].shape != own.shape:
                raise ValueError(
                    f"{name} of the state is {tuple(given[name].shape)}, expected {tuple(own.shape)}: it was "
                    "changed after stream.state_dict() made it"
                )
        held, frames = given["remainder_samples"].tolist(), given["frames"].tolist()
        if len(held) != batch or not all(0 <= n < self.hop for n in held) or min(frames) < 0:
            raise ValueError(
                f"remainder_samples of the state must be {batch} numbers from 0 to {self.hop - 1}, got {held}"
            )
        values = {name: given[name].to(own, copy=True) for name, own in expected.items()}
        self._remainder = values.pop("remainder").numpy()
        self._state = state_of({n.removeprefix(_PART): v for n, v in values.items()}, self._axes)
        self._held, self._frames = held, frames

    @cached_property
    def _digest(self) -> Tensor:
        """Digest (32,) of the model: classes, settings and values, in any precision and on any device."""
        model = self._model
        found = model.digest() if isinstance(model, ExportedModel) else _digest(model)
        return torch.frombuffer(bytearray(found), dtype=torch.uint8)

    # ---- latency

    @cached_property
    def latency_ms(self) -> float:
        """Algorithmic latency in ms: how old sound is, at most, when the rate that it moves is there.

        It is one bin, which must be complete, the delay of the front-end (``model.latency_ms``) and frames of
        look-ahead; what the computation takes comes on top (`timing`). NaN where the bin width is not known.
        """
        if isinstance(self._model, ExportedModel):
            return self._model.latency_ms
        return algorithmic_latency_ms(self._model)

    def timing(self) -> StreamTiming:
        """Return the measured speed: pushes, their median and 99th percentile, and the real-time factor.

        Returns
        -------
        StreamTiming
            Of all pushes of this object, wall-clock time; percentiles are of the latest 10,000.
        """
        times = 1000.0 * self._times[: min(self._pushes, TIMED_PUSHES)]
        median, late = np.percentile(times, [50, 99]) if len(times) else (math.nan, math.nan)
        factor = math.nan
        if self._timed_frames and self.dt_ms is not None:
            factor = self._timed_frames * self.dt_ms / (1000.0 * self.batch * self._seconds)
        return StreamTiming(self._pushes, self._timed_frames, float(median), float(late), factor)

    def __repr__(self) -> str:
        """Return the model's class, the number of streams and what one bin is."""
        rate = "" if self.audio_fs is None else f", {self.audio_fs:g} Hz"
        bins = "" if self.dt_ms is None else f", bins of {self.dt_ms:g} ms"
        return f"Stream({self._name}, batch={self.batch}, {self.n_neurons} neurons{rate}{bins})"

    # ---- the model

    def _check_steps(self) -> None:
        """Run the model once, which also fills its caches, and compare parts of the user's own with forward.

        A class that changes ``forward`` and inherits ``step`` would give other numbers in a stream.
        """
        shape = (1,) if self._hears else (1, self._bands or 1)
        parts = () if isinstance(self._model, ExportedModel) else self._model.modules()
        own = [part for part in parts if not type(part).__module__.startswith(("deepSTRF.", "torch."))]
        cuts = _PROBE_CUTS if own else (1,)
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(
            (self.batch, *shape, sum(cuts) * self.hop), generator=generator, dtype=torch.float64
        )
        noise, state, made = noise.to(self.device, self.dtype), self._state, []
        with torch.inference_mode():
            for chunk in torch.split(noise, [cut * self.hop for cut in cuts], dim=-1):
                rates, state = self._model.step(chunk, state)
                made.append(rates)
            stepped = torch.cat(made, dim=-1)
            expected = (self.batch, self.n_neurons, 1, sum(cuts))
            if tuple(stepped.shape) != expected:
                raise ValueError(
                    f"step of {self._name} gives {tuple(stepped.shape)} for {sum(cuts)} "
                    f"frames, expected (B, N, 1, T) = {expected}"
                )
            if not own:
                return
            whole = cast(NeuralModel, self._model)(noise)
        error, span = (whole - stepped).abs().max(), (whole.max() - whole.min()).clamp_min(1e-6)
        if not float(error) <= _PROBE_TOLERANCE * float(span):
            names = ", ".join(sorted({type(part).__name__ for part in own}))
            raise ValueError(
                f"{names}: step does not give what forward gives (they differ by {float(error / span):.2g} "
                "of the range on noise). A class that changes forward, respond or transform needs its own "
                "init_state(batch, *, device, dtype) and step(chunk, state)"
            )


@dataclass(slots=True)
class _Piece:
    """New samples (k, ..., n) of streams in step, behind the held ones (k, held) of their incomplete bin."""

    streams: list[int]
    held: int
    rest: NDArray[Any] | None
    sound: NDArray[Any]

    @property
    def n_samples(self) -> int:
        return self.held + int(self.sound.shape[-1])

    def copy_into(self, out: NDArray[Any], start: int, stop: int) -> None:
        """Copy samples start to stop, counted from the first of the incomplete bin."""
        held = self.held
        if self.rest is None or start >= held:
            out[...] = self.sound[..., start - held : stop - held]
            return
        early = min(stop, held) - start
        out[..., :early] = self.rest[:, start : start + early]
        out[..., early:] = self.sound[..., : max(stop - held, 0)]


def _copy_for_streams(model: Any, dtype: torch.dtype | None, device: torch.device | None) -> NeuralModel:
    """Copy of a model in eval mode whose filters and kernels are constants."""
    if not isinstance(model, NeuralModel):
        raise TypeError(
            f"model must be a NeuralModel such as Linear(...) or NeuralModel.from_pretrained(folder), got "
            f"{type(model).__name__}"
        )
    check_has_values(model)
    if device is not None and device.type == "meta":
        raise ValueError("device='meta' holds no values: give the device that computes, or leave it out")
    _warn_of_standardized(model.fitted_on)
    fixed = frozen(model)
    return fixed if dtype is None and device is None else fixed.to(device=device, dtype=dtype)


def _warn_of_standardized(fitted_on: FittedOn | None) -> None:
    if fitted_on is not None and fitted_on.standardized:
        warnings.warn(
            "this model was fitted on stimuli that the dataset had standardised, and it does not know their "
            "mean and deviation: what is pushed must be standardised in the same way (a model built with "
            "standardize=True does it itself); model.fitted_on = None silences this",
            UserWarning,
            stacklevel=outside_level(),
        )


def _graph_as_asked(
    graph: ExportedModel, dtype: torch.dtype | None, device: torch.device | None
) -> ExportedModel:
    """The graph; an error where it would have to be another."""
    if dtype not in (None, graph.dtype):
        raise ValueError(
            f"the graph computes in {graph.dtype}, not {dtype}: export the model in that precision, or leave "
            "dtype out"
        )
    if device is not None and device.type != "cpu":
        raise ValueError(
            f"graphs run on the CPU, not on {device}: leave device out, or give the model itself"
        )
    _warn_of_standardized(graph.fitted_on)
    return graph


def _plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """A precision that NumPy has, for one that it may not have."""
    return dtype if dtype == torch.float64 else torch.float32


def _as_floats(name: str, samples: Any) -> NDArray[Any]:
    """Real floating-point samples as an array, which may share their memory."""
    if isinstance(samples, np.ma.MaskedArray) or not isinstance(samples, np.ndarray | Tensor):
        raise TypeError(
            f"{name} must be a NumPy array or a tensor of floating-point samples (or a list of one per "
            f"stream), got {type(samples).__name__}: np.asarray(samples, dtype=np.float32)"
        )
    if isinstance(samples, np.ndarray) and samples.dtype.kind not in "biufc":
        raise TypeError(f"{name} must hold floating-point samples, got {samples.dtype}")
    if isinstance(samples, Tensor) and samples.is_floating_point():
        plain = samples.detach().to("cpu", _plain_dtype(samples.dtype))
        found: NDArray[Any] = plain.numpy()
        return found
    if isinstance(samples, np.ndarray) and samples.dtype.kind == "f":
        return samples
    kind = str(samples.dtype).removeprefix("torch.")
    scale = {"int16": "32768", "int32": "2147483648"}.get(kind)
    if kind == "uint8":
        cure = f"({name} - 128.0) / 128"
    else:
        cure = f"{name} / {scale}.0" if scale else f"{name}.astype(np.float32) in the unit of the fit"
    raise TypeError(
        f"{name} must be floating point, got {kind}: samples are never scaled here. Full scale is 1 "
        f"in the sounds of most recordings: {cure}"
    )


def _entries(index: Tensor, place: StreamAxis) -> Tensor:
    """Positions of streams along the axis of one tensor."""
    if place.entries == 1:
        return index
    return (index[:, None] * place.entries + torch.arange(place.entries, device=index.device)).flatten()


def _digest(model: NeuralModel) -> bytes:
    """SHA-256 of a model's classes, plain settings and values; the precision of the values does not count."""
    found = hashlib.sha256()
    for name, part in model.named_modules():
        settings = getattr(part, "init_arguments", {})
        plain = {key: repr(value) for key, value in settings.items() if _is_plain(value)}
        found.update(json.dumps([name, type(part).__name__, plain], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        found.update(f"{name}{tuple(value.shape)}".encode())
        exact = value.detach().cpu()
        exact = exact.double() if exact.is_floating_point() else exact.to(torch.int64)
        found.update(exact.contiguous().numpy().tobytes())
    return found.digest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
