"""Search of an exciting sound without gradients, trial by trial: an evolution strategy over sounds.

The family has a few named parameters in stated ranges; every sound is brought to the same root mean square,
so that the search changes what a sound is and not how loud it is. Neurons may be noisy: no step trusts a
single trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

from deepSTRF._validation import (
    FloatArray,
    as_numbers,
    check_choice,
    check_positive_int,
    check_positive_number,
    checked,
    checked_but,
)
from deepSTRF.interpret.exciting import SOUND_RMS
from deepSTRF.interpret.probes.presentation import as_presentation, two_frequencies
from deepSTRF.interpret.probes.sounds import noise, ramped
from deepSTRF.interpret.sonify import write_wav

#: Share of the trials that is kept back: to choose among the last candidates, and to measure the one chosen.
CONFIRM_SHARE = 0.15
#: Candidates: the centre of the search and the best single trials. Silence and the winner are played on top.
N_CANDIDATES = 4
#: A parameter further out than this is at the end of its range to a tenth of a percent.
FURTHEST = 3.0
#: Noise bands: octaves that a band is wide, rates of modulation that neurons follow, and the noise.
BANDWIDTHS_OCTAVES, AM_RATES_HZ = (0.1, 3.0), (2.0, 64.0)


@dataclass(frozen=True)
class SoundFamily:
    """Sounds that differ in a few named parameters.

    Attributes
    ----------
    ranges : mapping of str to (float, float). Lowest and highest value of each parameter.
    synthesize : callable. Maps a dictionary of parameters to samples (T_audio,), all of one length; of any
        level, as a search sets it.
    audio_fs : float. Samples per second.
    log : sequence of str. Parameters that are searched on a log axis, such as frequencies.

    Examples
    --------
    >>> def tone(p):
    ...     return np.sin(2 * np.pi * p["hertz"] * np.arange(1600) / 16000)
    >>> family = SoundFamily({"hertz": (100.0, 6400.0)}, tone, 16000, log=["hertz"])
    >>> round(family.parameters(np.zeros(1))["hertz"], 6)            # the middle of the range
    800.0
    """

    ranges: Mapping[str, tuple[float, float]]
    synthesize: Callable[[dict[str, float]], Any] = field(repr=False)
    audio_fs: float
    log: Sequence[str] = ()

    @checked_but("synthesize")
    def __post_init__(self) -> None:
        check_positive_number("audio_fs", self.audio_fs)
        if not self.ranges or not callable(self.synthesize):
            raise ValueError("a family needs one range or more, and a function synthesize(parameters)")
        for name, ends in self.ranges.items():
            low, high = as_numbers(ends, f"the range of {name}")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"the range of {name} must be two ascending finite numbers, got {ends!r}")
            if name in self.log and low <= 0:
                raise ValueError(f"the range of {name} must lie above 0 for a log axis, got {ends!r}")
        unknown = [name for name in self.log if name not in self.ranges]
        if unknown:
            raise ValueError(f"log must hold names of parameters ({', '.join(self.ranges)}), got {unknown}")

    @classmethod
    @checked
    def tones(
        cls,
        audio_fs: float,
        duration_ms: float,
        range_hz: tuple[float, float],
        *,
        n_tones: int = 12,
        n_frames: int = 4,
        range_db: float = 40.0,
        seed: int = 0,
    ) -> SoundFamily:
        """Return chords of log-spaced tones whose levels change over time: any coarse spectrogram.

        Parameters
        ----------
        audio_fs : float
            Samples per second.
        duration_ms : float
            Length.
        range_hz : (float, float)
            Lowest and highest tone.
        n_tones, n_frames : int
            Tones, and points in time between which their levels (in dB) are interpolated: ``n_tones *
            n_frames`` parameters, named ``"1000 Hz, 25 ms"``.
        range_db : float
            Range of the levels: the least of them is inaudible beside the greatest.
        seed : int
            Phases of the tones.
        """
        low, high = two_frequencies("range_hz", range_hz, check_positive_number("audio_fs", audio_fs))
        n_tones, n_frames = check_positive_int("n_tones", n_tones), check_positive_int("n_frames", n_frames)
        n_samples = _n_samples(audio_fs, duration_ms)
        hertz = np.geomspace(low, high, n_tones) if n_tones > 1 else np.array([math.sqrt(low * high)])
        phases = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, (n_tones, 1))
        seconds = np.arange(n_samples) / audio_fs
        carriers = np.sin(2.0 * np.pi * hertz[:, None] * seconds + phases)
        centres = (np.arange(n_frames) + 0.5) * n_samples / audio_fs / n_frames
        names = [f"{tone:.0f} Hz, {1000.0 * at:.0f} ms" for tone in hertz for at in centres]
        if len(set(names)) < len(names):
            raise ValueError(
                f"n_tones={n_tones} and n_frames={n_frames} are too dense: 1 Hz and 1 ms apart at least"
            )

        def synthesize(parameters: dict[str, float]) -> FloatArray:
            levels = np.reshape([parameters[name] for name in names], (n_tones, n_frames))
            course = np.stack([np.interp(seconds, centres, row) for row in levels])
            return np.asarray((10.0 ** (course / 20.0) * carriers).sum(axis=0))

        lowest = -check_positive_number("range_db", range_db)
        return cls(dict.fromkeys(names, (lowest, 0.0)), synthesize, audio_fs)

    @classmethod
    @checked
    def noise_bands(
        cls, audio_fs: float, duration_ms: float, range_hz: tuple[float, float], *, seed: int = 0
    ) -> SoundFamily:
        """Return bands of amplitude-modulated noise: centre, width, rate and depth of modulation.

        Four parameters that a few hundred trials search well, as in Chambers et al. 2014, doi
        10.1523/JNEUROSCI.0260-14.2014.

        Parameters
        ----------
        audio_fs : float
            Samples per second.
        duration_ms : float
            Length.
        range_hz : (float, float)
            Range of the centres; bands end there.
        seed : int
            Which noise.
        """
        low, high = two_frequencies("range_hz", range_hz, check_positive_number("audio_fs", audio_fs))
        n_samples = _n_samples(audio_fs, duration_ms)
        seconds, least_hz = np.arange(n_samples) / audio_fs, 2.0 * audio_fs / n_samples

        def synthesize(parameters: dict[str, float]) -> FloatArray:
            centre, half = parameters["centre_hz"], 2.0 ** (0.5 * parameters["bandwidth_octaves"])
            first, last = max(low, centre / half), min(high, centre * half)
            if last - first < least_hz:  # a few Fourier bins
                first, last = centre - 0.5 * least_hz, centre + 0.5 * least_hz
            carrier = noise(n_samples, audio_fs, band_hz=(first, last), seed=seed, ramp_ms=0.0)
            turn = 2.0 * np.pi * parameters["am_rate_hz"] * seconds
            return ramped(carrier * (1.0 - parameters["am_depth"] * np.cos(turn)), audio_fs)

        ranges = {
            "centre_hz": (low, high), "bandwidth_octaves": BANDWIDTHS_OCTAVES, "am_rate_hz": AM_RATES_HZ,
            "am_depth": (0.0, 1.0),
        }  # fmt: skip
        return cls(ranges, synthesize, audio_fs, log=("centre_hz", "am_rate_hz"))

    @checked
    def parameters(self, point: FloatArray) -> dict[str, float]:
        """Return the parameters at a point (P,) of normal deviates: 0 is the middle of each range.

        Standard normal points are uniform over the ranges.
        """
        found = {}
        for (name, (low, high)), share in zip(self.ranges.items(), ndtr(point), strict=True):
            if name in self.log:
                found[name] = float(low * (high / low) ** share)
            else:
                found[name] = float(low + (high - low) * share)
        return found


@dataclass(frozen=True)
class SoundSearch:
    """The sound that a search without gradients found.

    Attributes
    ----------
    neuron : int. Whose response was raised.
    sound : array (T_audio,). The sound, in whole bins.
    parameters : dict of str to float. Its parameters in the family.
    response : float. Mean response to it, of trials that had no part in its choice: the best of many noisy
        trials is better than its sound.
    response_error : float. Standard error of that mean; NaN of a single trial.
    null_response : float. Mean response to silence of the same length.
    trial_responses : array (n,). Response of each trial of the search, in order.
    population : int. Trials of a generation: ``trial_responses.reshape(-1, population).mean(1)`` is the
        course of the search.
    n_trials : int. Sounds played, silence and confirmation included.
    rms : float. Root mean square of the sound.
    audio_fs : float. Samples per second.
    """

    neuron: int
    sound: FloatArray
    parameters: dict[str, float]
    response: float
    response_error: float
    null_response: float
    trial_responses: FloatArray
    population: int
    n_trials: int
    rms: float
    audio_fs: float

    @checked
    def write_wav(self, path: str | Path) -> Path:
        """Write the sound as a WAV file and return its path."""
        return write_wav(path, self.sound, self.audio_fs)


@checked_but("target", "progress")
def search_sound(
    target: Any,
    family: SoundFamily,
    neuron: int | None = None,
    *,
    n_trials: int = 400,
    rms: float = SOUND_RMS,
    reduce: str = "mean",
    population: int | None = None,
    seed: int = 0,
    progress: Callable[[int, float], Any] | None = None,
) -> SoundSearch:
    """Search, trial by trial and without gradients, a sound of a family that excites a neuron.

    For what `exciting_sound` cannot differentiate: a neuron behind a stream, a server or a rig. An evolution
    strategy draws a generation of sounds around a centre, plays them, and moves the centre, and the spread of
    each parameter, towards those that excited more; only the order of the responses counts, so that their
    unit does not. The first generation covers the ranges of the family evenly. At the end the centre and the
    best single trials are played again in equal numbers; the winner's response is then measured by trials of
    its own.

    Parameters
    ----------
    target : ClosedLoop, Stream, Presentation or nn.Module
        What answers; a `Presentation` states the silence before each trial.
    family : SoundFamily
        Sounds to search.
    neuron : int, optional
        Which of those that are read; None is the first.
    n_trials : int
        Most sounds to play, silence and the last measurements included; each counts once, also where the
        loop repeats it.
    rms : float
        Root mean square of every sound.
    reduce : {"mean", "last"}
        Which response is raised: its mean over the sound, or that in the last bin.
    population : int, optional
        Sounds of a generation; None is ``4 + 3 ln P`` for P parameters. More are better where neurons are
        noisy and trials many.
    seed : int
        Of the search.
    progress : callable, optional
        Called after every generation with the trials so far and the mean response of the generation; a true
        answer ends the search, and what was found is measured.

    Returns
    -------
    SoundSearch
        The sound, its parameters and response, and the course of the search.

    Raises
    ------
    ValueError, TypeError, IndexError
        For an illegal argument, fewer trials than two generations and the last measurements take, a family
        at another audio rate, or one that makes silence.

    References
    ----------
    Ros & Hansen 2008, doi 10.1007/978-3-540-87700-4_30 (the strategy); DiMattina & Zhang 2013, doi
    10.3389/fncir.2013.00101 (adaptive stimuli); Bleeck, Patterson & Winter 2003, doi
    10.1016/S0165-0270(03)00040-7 (in hearing).

    Examples
    --------
    >>> from deepSTRF.interpret import ClosedLoop
    >>> def respond(samples):                                        # a neuron that likes 1 kHz
    ...     bins = samples.reshape(-1, 80)
    ...     return np.abs(bins @ np.exp(-2j * np.pi * 1000 * np.arange(80) / 16000)) / 80
    >>> family = SoundFamily.noise_bands(16000, 100.0, (250.0, 4000.0))
    >>> loop = ClosedLoop(respond, audio_fs=16000, dt_ms=5.0)
    >>> found = search_sound(loop, family, n_trials=120)
    >>> bool(800 < found.parameters["centre_hz"] < 1250), found.n_trials <= 120
    (True, True)
    """
    presentation = as_presentation(target)
    check_choice("reduce", reduce, ("mean", "last"))
    size = check_positive_number("rms", rms)
    if abs(family.audio_fs - presentation.fs) > 1e-9 * presentation.fs:
        raise ValueError(
            f"family must be made at {presentation.fs:g} samples per second, got {family.audio_fs:g}"
        )
    neuron = presentation.neurons[0] if neuron is None else neuron
    if neuron not in presentation.neurons:
        raise IndexError(f"neuron must be one of those that are read, {presentation.neurons}; got {neuron!r}")
    row = presentation.neurons.index(neuron)
    population = 4 + int(3 * math.log(len(family.ranges))) if population is None else population
    if check_positive_int("population", population) < 4:
        raise ValueError(f"population must be 4 or more, got {population}")
    n_last = max(1, round(CONFIRM_SHARE * n_trials / (N_CANDIDATES + 2)))
    n_generations = (check_positive_int("n_trials", n_trials) - n_last * (N_CANDIDATES + 2)) // population
    if n_generations < 2:
        least = 2 * population + math.ceil((N_CANDIDATES + 2) * max(1.0, CONFIRM_SHARE * n_trials / 6))
        raise ValueError(
            f"n_trials must be {least} or more, for two generations of {population} and what is measured "
            f"after them; got {n_trials}"
        )

    def heard(sounds: Sequence[FloatArray]) -> FloatArray:
        rates = presentation.play(sounds)[:, row, presentation.lead_bins :]
        return np.asarray(rates.mean(axis=-1) if reduce == "mean" else rates[:, -1])

    def sound_at(point: FloatArray) -> FloatArray:
        return _levelled(family, family.parameters(point), size, presentation.samples(0.0))

    strategy = _Evolution(len(family.ranges), population, np.random.default_rng(seed))
    points, responses = np.zeros((0, len(family.ranges))), np.zeros(0)
    for _ in range(n_generations):
        drawn = strategy.ask()
        answers = heard([sound_at(point) for point in drawn])
        strategy.tell(drawn, answers)
        points, responses = np.concatenate([points, drawn]), np.concatenate([responses, answers])
        if progress is not None and progress(len(responses), float(answers.mean())):
            break
    best = points[np.argsort(-responses, kind="stable")[: N_CANDIDATES - 1]]
    candidates = [strategy.centre, *best]
    sounds = [sound_at(point) for point in candidates]
    # in turn, so that a slow drift touches all alike
    again = heard([sound for _ in range(n_last) for sound in sounds]).reshape(n_last, -1)
    chosen = int(again.mean(axis=0).argmax())
    sound = sounds[chosen]
    finally_heard = heard([one for _ in range(n_last) for one in (sound, np.zeros_like(sound))])
    measured, null = finally_heard[::2], finally_heard[1::2]
    error = float(measured.std(ddof=1) / math.sqrt(n_last)) if n_last > 1 else math.nan
    played = len(responses) + n_last * (N_CANDIDATES + 2)
    return SoundSearch(
        neuron, sound, family.parameters(candidates[chosen]), float(measured.mean()), error,
        float(null.mean()), responses, population, played, size, presentation.fs,
    )  # fmt: skip


def _n_samples(audio_fs: float, duration_ms: float) -> int:
    return max(2, round(check_positive_number("duration_ms", duration_ms) * audio_fs / 1000.0))


def _levelled(family: SoundFamily, parameters: dict[str, float], rms: float, hop: int) -> FloatArray:
    """A sound of the family with silence up to whole bins, at the given root mean square."""
    samples = as_numbers(family.synthesize(parameters), "what synthesize returns")
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all() or not samples.any():
        raise ValueError(
            f"synthesize must return finite samples (T_audio,) that are not silence, got {samples.shape} for "
            f"{parameters}"
        )
    sound = np.concatenate([samples, np.zeros(-samples.size % hop)])
    return np.asarray(sound * (rms / math.sqrt(float((sound**2).mean()))))


class _Evolution:
    """The separable covariance-matrix evolution strategy: a centre, a step, and a spread per parameter.

    The constants are Hansen's defaults; those of the covariance are larger by (n + 2) / 3, as P spreads are
    learnt sooner than P^2 / 2 covariances (Ros & Hansen 2008).
    """

    def __init__(self, n: int, population: int, rng: np.random.Generator) -> None:
        self.rng, self.n, self.population = rng, n, population
        parents = population // 2
        weights = math.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
        self.weights = weights / weights.sum()
        self.mass = mass = 1.0 / float((self.weights**2).sum())
        self.step_memory = (mass + 2) / (n + mass + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + self.step_memory
        self.path_memory = (4 + mass / n) / (n + 4 + 2 * mass / n)
        faster = (n + 2) / 3
        self.rank_one = min(1.0, faster * 2 / ((n + 1.3) ** 2 + mass))
        self.rank_many = min(1.0 - self.rank_one, faster * 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
        self.expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))  # length of a normal vector
        self.centre, self.variance, self.step = np.zeros(n), np.ones(n), 1.0
        self.step_path, self.path, self.generation = np.zeros(n), np.zeros(n), 0

    def ask(self) -> FloatArray:
        """Return the points (population, P) of a generation."""
        spread = self.step * np.sqrt(self.variance)
        drawn = self.centre + spread * self.rng.standard_normal((self.population, self.n))
        return np.asarray(np.clip(drawn, -FURTHEST, FURTHEST))

    def tell(self, points: FloatArray, values: FloatArray) -> None:
        """Move towards the better half of the points."""
        self.generation += 1
        better = points[np.argsort(-values, kind="stable")[: len(self.weights)]]
        moves = (better - self.centre) / self.step
        move = self.weights @ moves
        self.centre = self.centre + self.step * move
        keep = 1 - self.step_memory
        self.step_path = keep * self.step_path + math.sqrt((1 - keep**2) * self.mass) * move / np.sqrt(
            self.variance
        )
        length = float(np.linalg.norm(self.step_path)) / self.expected
        # the path is short at first; and not followed where it is long, as the step has yet to grow
        grown = math.sqrt(1 - keep ** (2 * self.generation))
        steady = float(length / grown < 1.4 + 2 / (self.n + 1))
        keep = 1 - self.path_memory
        self.path = keep * self.path + steady * math.sqrt((1 - keep**2) * self.mass) * move
        left = 1 - self.rank_one - self.rank_many + (1 - steady) * self.rank_one * (1 - keep**2)
        self.variance = (
            left * self.variance + self.rank_one * self.path**2 + self.rank_many * (self.weights @ moves**2)
        )
        self.step *= math.exp(self.step_memory / self.damping * (length - 1))
