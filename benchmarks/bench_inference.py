"""Do tests reject noise as often as they say, and do intervals hold the truth? `python benchmarks/bench_inference.py [--quick]`.

Noise has no relation to any prediction, scores of simulated neurons have a known truth; everything goes through the public
calls. False positives at 5 % stand beside the 95 % binomial interval of 500 tests; coverage beside 93-97 %.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from scipy import signal, stats

from deepSTRF.crossval import compare_models, partition_variance, score_intervals, score_null
from deepSTRF.datasets.audio import AudioNeuralDataset

torch.set_num_threads(1)
TRUTH = ("cc_norm", "cc", "feve", "fve")
N_NOISE = 500
SHARED = "over neurons that share noise"


def recording(prediction, responses):
    """Predictions (S, N, T) as a list, and a dataset of responses (S, N, R, T)."""
    ds = AudioNeuralDataset.from_arrays(
        [torch.rand(2, responses.shape[-1]) for _ in responses],
        list(torch.from_numpy(responses).float()),
        5.0,
    )
    return list(torch.from_numpy(prediction)), ds


def noise(rng, shape, bins):
    """Gaussian noise whose correlation falls to 1/e in ``bins``; 0 is white."""
    if not bins:
        return rng.standard_normal(shape)
    keep = math.exp(-1 / bins)
    drive = rng.standard_normal(shape) * math.sqrt(1 - keep * keep)
    drive[..., 0] = rng.standard_normal(shape[:-1])
    return signal.lfilter([1.0], [1.0, -keep], drive, axis=-1)


def verdict(rate, low, high):
    return f"{rate:6.1%} {'ok' if low <= rate <= high else 'MISS'}"


# ---- false positives


def neuron_rates(bins, populations, n_clips=20, n_bins=400):
    """Rejections of noise at 5 % by each test of single neurons: name -> rate over all populations of 500."""
    found = {}
    for population in range(populations):
        rng = np.random.default_rng([bins, population])
        shape = (n_clips, N_NOISE, n_bins)
        responses = noise(rng, (n_clips, N_NOISE, 2, n_bins), bins)
        first, ds = recording(noise(rng, shape, bins), responses)
        second = list(torch.from_numpy(noise(rng, shape, bins)))
        for method in ("shift", "permute-clips"):
            p = score_null(first, ds, method=method, score="cc", n_null=499).p
            found.setdefault(method, []).append(p)
        for score in ("cc", "mse"):
            pair = compare_models({"a": first, "b": second}, ds, score=score, n_permutations=999).pairs[0]
            found.setdefault(f"sign flips, {score}", []).append(pair.p)
            outside = (pair.neurons.low > 0) | (pair.neurons.high < 0)
            found.setdefault(f"interval of difference, {score}", []).append(np.where(outside, 0.0, 1.0))
    rates = {}
    for name, p in found.items():
        values = np.concatenate(p)
        tested = ~np.isnan(values)
        rates[name] = (
            float((values[tested] <= 0.05).mean()) if tested.any() else math.nan,
            int((~tested).sum()),
        )
    return rates


def population_rates(bins, repetitions, n_neurons=8, n_clips=12, n_bins=160):
    """Rejections at 5 % of tests of the mean over neurons, whose noise is shared (but for "over neurons")."""
    found = {}
    for repetition in range(repetitions):
        rng = np.random.default_rng([bins, 7, repetition])
        shape = (n_clips, n_neurons, n_bins)
        shared = noise(rng, (n_clips, 1, 1, n_bins), bins)
        responses = shared + noise(rng, (n_clips, n_neurons, 2, n_bins), bins)
        common = noise(rng, (2, n_clips, 1, n_bins), bins)
        first, ds = recording(common[0] + noise(rng, shape, bins), responses)
        second = list(torch.from_numpy(common[1] + noise(rng, shape, bins)))
        for method in ("shift", "permute-clips"):
            p = score_null(first, ds, method=method, score="cc", n_null=199).mean_p
            found.setdefault(f"{method}, mean", []).append(p)
        both = {"a": first, "b": second}
        pair = compare_models(both, ds, score="cc", n_permutations=499).pairs[0]
        found.setdefault("sign flips over clips, mean", []).append(pair.mean_p)
        over = compare_models(both, ds, score="cc", over="neurons", n_permutations=499).pairs[0]
        found.setdefault(SHARED, []).append(over.mean_p)
        independent, alone = recording(
            noise(rng, shape, bins), noise(rng, (n_clips, n_neurons, 2, n_bins), bins)
        )
        other = list(torch.from_numpy(noise(rng, shape, bins)))
        over = compare_models(
            {"a": independent, "b": other}, alone, score="cc", over="neurons", n_permutations=499
        )
        found.setdefault("over independent neurons", []).append(over.pairs[0].mean_p)
    return {name: float((np.array(p) <= 0.05).mean()) for name, p in found.items()}


def without_short_shifts(populations, n_clips=20, n_bins=200, bins=5, least=20, n_null=399):
    """Rejections when shifts below four correlation times are left out: the textbook's advice, by hand."""
    p = []
    for population in range(populations):
        rng = np.random.default_rng([3, population])
        x, y = (noise(rng, (n_clips, N_NOISE, n_bins), bins) for _ in range(2))
        x, y = (part - part.mean((0, 2), keepdims=True) for part in (x, y))
        cross = np.fft.irfft(np.fft.rfft(y).conj() * np.fft.rfft(x), n_bins)  # (S, N, shifts)
        drawn = rng.integers(least, n_bins - least + 1, size=(n_clips, n_null))
        null = sum(cross[clip][:, drawn[clip]] for clip in range(n_clips))
        p.append((1 + (null >= cross[:, :, 0].sum(0)[:, None]).sum(1)) / (1 + n_null))
    return float((np.concatenate(p) <= 0.05).mean())


def cross_validated(n_features, n_folds, populations, n_clips=20, n_bins=150):
    """Rejections of noise predicted by ridge fits over folds: plain and with ``cross_validated=True``."""

    def predicted(rng, psth):
        sound, fold = noise(rng, (n_clips, n_features, n_bins), 3), np.arange(n_clips) % n_folds
        gram, cross = sound @ sound.transpose(0, 2, 1), sound @ psth.transpose(0, 2, 1)
        rates = np.empty(psth.shape)
        for one in range(n_folds):
            train = fold != one
            penalised = gram[train].sum(0) + 30 * np.eye(n_features)
            weight, mean = np.linalg.solve(penalised, cross[train].sum(0)), psth[train].mean((0, 2))
            rates[~train] = weight.T @ sound[~train] + mean[:, None]
        return rates

    found = {}
    for population in range(populations):
        rng = np.random.default_rng([n_features, n_folds, population])
        responses = noise(rng, (n_clips, N_NOISE, 1, n_bins), 3)
        first, ds = recording(predicted(rng, responses[:, :, 0]), responses)
        both = {"a": first, "b": list(torch.from_numpy(predicted(rng, responses[:, :, 0])))}
        for known in (False, True):
            for method in ("shift", "permute-clips"):
                p = score_null(first, ds, method=method, score="cc", n_null=399, cross_validated=known).p
                found.setdefault((method, known), []).append(p)
            pair = compare_models(both, ds, score="cc", n_permutations=499, cross_validated=known).pairs[0]
            found.setdefault(("two models", known), []).append(pair.p)
    return {name: float((np.concatenate(p) <= 0.05).mean()) for name, p in found.items()}


# ---- coverage


def simulated(rng, n_clips, n_neurons, n_bins, n_repeats, ratio, uneven):
    """Predictions and responses whose gain (log-normal, ``uneven``), mean and quality differ from clip to clip."""
    shape = (n_clips, n_neurons, n_bins)
    each = (n_clips, n_neurons, 1)
    driven, other = noise(rng, shape, 5), noise(rng, shape, 5)
    gain, mean = np.exp(uneven * rng.standard_normal(each)), 0.5 * rng.standard_normal(each)
    quality = np.clip(0.7 + 0.2 * rng.standard_normal(each), -1, 1)
    prediction = gain * (quality * driven + 0.7 * np.sqrt(1 - quality**2) * other) + 0.5 * mean
    rate = gain * driven + mean
    level = math.sqrt((math.exp(2 * uneven**2) + 0.25) / ratio)  # of the noise, from the rate's variance
    return (
        prediction,
        rate,
        rate[:, :, None] + level * rng.standard_normal((n_clips, n_neurons, n_repeats, n_bins)),
        level,
    )


def truth(ratio, uneven, n_repeats):
    """Scores of endless clips with as many repeats."""
    prediction, rate, _, level = simulated(np.random.default_rng(99), 20_000, 4, 50, 1, ratio, uneven)
    x, y = (part - part.mean() for part in (prediction, rate))
    cov, var, power = (x * y).mean(), (x * x).mean(), (y * y).mean()
    total = power + level**2 / n_repeats
    return dict(
        zip(
            TRUTH,
            (
                cov / math.sqrt(var * power),
                cov / math.sqrt(var * total),
                (2 * cov - var) / power,
                (2 * cov - var) / total,
            ),
            strict=True,
        )
    )


def coverage(n_clips, ratio, uneven, method, known, n_repetitions, n_bootstrap):
    """Share of intervals of single neurons that hold the truth, and of those without an interval: per score."""
    rng = np.random.default_rng([n_clips, int(10 * ratio), int(10 * uneven)])
    prediction, _, responses, _ = simulated(rng, n_clips, n_repetitions, 50, 4, ratio, uneven)
    result = score_intervals(
        *recording(prediction, responses), scores=TRUTH, method=method, n_bootstrap=n_bootstrap
    )
    rates = {}
    for score in TRUTH:
        part = result.intervals[score]
        there = ~np.isnan(part.low)
        held = (part.low <= known[score]) & (known[score] <= part.high)
        rates[score] = (float(held[there].mean()), float((~there).mean()))
    return rates


def population_coverage(n_clips, known, repetitions, ratio=1.0, uneven=0.2, n_neurons=12):
    """The same of mean and median over neurons that hear the same clips; of a difference; of a unique share."""
    held = {}

    def count(name, low, value, high):
        held.setdefault(name, []).append(low <= value <= high)

    for repetition in range(repetitions):
        rng = np.random.default_rng([n_clips, 77, repetition])
        prediction, rate, responses, _ = simulated(rng, n_clips, n_neurons, 50, 4, ratio, uneven)
        shared = noise(rng, (n_clips, 1, 50), 5)  # what the predictions of all neurons miss alike
        first, ds = recording(prediction, responses)
        for method in ("jackknife", "bootstrap"):
            part = score_intervals(first, ds, scores="cc_norm", method=method, n_bootstrap=300).population[
                "cc_norm"
            ]
            for index, name in enumerate(("mean", "median")):
                count(f"cc_norm, {name}, {method}", part.low[index], known["cc_norm"], part.high[index])
        noisy = [list(torch.from_numpy(rate + noise(rng, rate.shape, 5) + shared)) for _ in range(2)]
        pair = compare_models({"a": noisy[0], "b": noisy[1]}, ds, n_permutations=99).pairs[0]
        count("difference of equal models, mean", pair.population.low[0], 0.0, pair.population.high[0])
        unique = noise(rng, rate.shape, 5)
        both = responses + 0.5 * unique[:, :, None]
        whole = recording(rate + 0.5 * unique, both)
        nested = {
            ("a",): list(torch.from_numpy(rate)),
            ("b",): list(torch.from_numpy(0.5 * unique)),
            ("a", "b"): whole[0],
        }
        share = partition_variance(nested, whole[1]).population["b"]
        power = math.exp(2 * uneven**2) + 0.25
        count("unique share, mean", share.low[0], 0.25 / (power + 0.25), share.high[0])
    return {name: float(np.mean(values)) for name, values in held.items()}


# ---- time


def seconds(call, times=3):
    """Median processor time."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return float(np.median(found))


def speed():
    """500 neurons, 20 clips of 1,000 bins: 1,000 shifts by our call, and by rolling the predictions (20 of them, times 50)."""
    rng = np.random.default_rng(0)
    predictions, ds = recording(rng.standard_normal((20, 500, 1000)), rng.standard_normal((20, 500, 4, 1000)))
    x = np.concatenate([one.numpy() for one in predictions], axis=1)
    y = np.concatenate([ds.response_block(clip).mean(1).numpy() for clip in range(20)], axis=1)
    x, y = (part - part.mean(1, keepdims=True) for part in (x, y))

    def rolled():
        for _ in range(20):
            moved = [
                np.roll(x[:, 1000 * clip : 1000 * (clip + 1)], rng.integers(1000), axis=1)
                for clip in range(20)
            ]
            np.einsum("nt,nt->n", np.concatenate(moved, axis=1), y)

    plain = 50 * seconds(rolled)
    for name, call in (
        ("shift", lambda: score_null(predictions, ds)),
        ("permute-clips", lambda: score_null(predictions, ds, method="permute-clips")),
        ("jackknife, 3 scores", lambda: score_intervals(predictions, ds)),
        ("bootstrap of 2,000, 3 scores", lambda: score_intervals(predictions, ds, method="bootstrap")),
        ("comparison, 9,999 sign patterns", lambda: compare_models({"a": predictions, "b": predictions}, ds)),
    ):
        own = seconds(call)
        print(f"  {name:<34}{own:7.1f} s   rolling 1,000 times takes {plain / own:5.1f} times as long")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one population, few repetitions")
    quick = parser.parse_args().quick
    populations, repetitions, many = (1, 40, 200) if quick else (2, 300, 1000)
    edges = [edge / repetitions for edge in stats.binom.interval(0.95, repetitions, 0.05)]
    low, high = (edge / N_NOISE for edge in stats.binom.interval(0.95, N_NOISE, 0.05))
    print(
        f"False positives at 5 %, noise, 20 clips of 400 bins; {populations} x 500 neurons; binomial interval of"
    )
    print(
        f"500 tests {low:.1%} .. {high:.1%}. Prediction and response have the same autocorrelation (bins to 1/e)."
    )
    for bins in (0, 5, 20, 40):
        for name, (rate, refused) in neuron_rates(bins, populations).items():
            rest = f"  ({refused} of {populations * N_NOISE} not tested: clips too short)" if refused else ""
            print(
                f"  {bins:>3} bins  {name:<30}{verdict(rate, low, high) if rate == rate else '   none'}{rest}"
            )
    print(
        f"The mean over 8 neurons, 12 clips of 160 bins, {repetitions} populations ({edges[0]:.1%} .. {edges[1]:.1%}):"
    )
    for bins in (0, 4):
        for name, rate in population_rates(bins, repetitions).items():
            other = name == SHARED  # sounds are fixed there: the noise of these clips is no chance
            print(
                f"  {bins:>3} bins  {name:<34}"
                + (f"{rate:6.1%} (another question)" if other else verdict(rate, *edges))
            )
    print("Not offered, and why (20 clips of 200 bins, 5 bins to 1/e):")
    print(f"  shifts of at least 20 bins only {without_short_shifts(populations):6.1%}")
    print(
        "Ridge fits to noise over folds, 20 clips of 150 bins, 3 bins to 1/e; in brackets: cross_validated=True"
    )
    for n_features in (1, 4, 12, 60):
        for n_folds in (20, 5):
            rates = cross_validated(n_features, n_folds, min(populations, 2))
            cells = [
                f"{name} {rates[name, False]:5.1%} ({rates[name, True]:.1%})"
                for name, known in rates
                if known
            ]
            print(f"  {n_features:>3} features, {n_folds:>2} folds: " + ", ".join(cells))
    print(f"Coverage of 95 % intervals, single neurons, {many} repetitions of clips of 50 bins, 4 repeats")
    print(
        "(SNR: signal over noise power of a repeat; uneven: sd of the log gain of clips; in brackets: no interval)"
    )
    print(
        f"  {'clips':>5}{'SNR':>5}{'uneven':>7} {'method':<10}" + "".join(f"{score:>16}" for score in TRUTH)
    )
    for ratio, uneven in ((1.0, 0.2), (0.1, 0.2), (1.0, 0.5)):
        known = truth(ratio, uneven, 4)
        for n_clips in (5, 10, 20):
            for method in ("jackknife", "bootstrap", "bca"):
                rates = coverage(n_clips, ratio, uneven, method, known, many, 600)
                cells = [f"{held:.1%}" + (f" ({gone:.0%})" if gone else "") for held, gone in rates.values()]
                print(
                    f"  {n_clips:>5}{ratio:>5}{uneven:>7} {method:<10}"
                    + "".join(f"{cell:>16}" for cell in cells)
                )
    print(
        f"Coverage for populations of 12 neurons that hear the same clips, {repetitions} repetitions, SNR 1"
    )
    known = truth(1.0, 0.2, 4)
    for n_clips in (5, 10, 20):
        for name, held in population_coverage(n_clips, known, repetitions).items():
            print(f"  {n_clips:>3} clips  {name:<36}{held:6.1%}")
    print("Processor time, 500 neurons, 20 clips of 1,000 bins, one thread:")
    speed()


if __name__ == "__main__":
    main()
