"""Linear models on NS1, one method beside the other: `python benchmarks/bench_linear.py [--lags 15 40]`.

Clips are split 14/3/3. What a method leaves open is chosen on the three validation clips; the evidence chooses on
the training clips alone, and once more with the validation clips as training clips. The three test clips are scored
once. Timed is the processor time of the whole fit, all choices included; ridge is the yardstick. The decoder
reconstructs the 34 bands from all neurons; its score is the correlation per band. Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure

from deepSTRF.baselines import fit_boosting, fit_decoder, fit_evidence, fit_ridge, fit_tikhonov
from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.datasets.splits import parse_split
from deepSTRF.plots import plot_strf_grid
from deepSTRF.training import score_model


def local(*views: Any, **options: Any) -> Any:
    """Fit with a prior of smoothness and locality."""
    return fit_evidence(*views, prior="smooth+local", **options)


#: Name: (what it is, fit, whether validation clips join the training clips).
METHODS: dict[str, tuple[str, Callable[..., Any], bool]] = {
    "ridge": ("ridge", fit_ridge, False),
    "tikhonov": ("Tikhonov, 9 pairs of smoothness", fit_tikhonov, False),
    "boosting": ("boosting", fit_boosting, False),
    "boosting-basis": (
        "boosting, Hamming windows of 20 ms",
        lambda *v, **o: fit_boosting(*v, basis_ms=20.0, **o),
        False,
    ),
    "evidence": ("evidence, smooth", fit_evidence, False),
    "evidence-all": ("evidence, smooth, 17 clips", fit_evidence, True),
    "local": ("evidence, smooth and local", local, False),
}
#: Methods of the figure.
DRAWN = ("ridge", "tikhonov", "boosting", "evidence", "local")


def bench(names: list[str], n_lags: int, ds: NS1Dataset) -> None:
    """Print the table of one window."""
    split = parse_split(ds, "14/3/3")
    train, validation, test = split.apply(ds)
    both = ds.select(clips=sorted([*split.train, *split.val]))
    print(f"\n{n_lags} lags, {n_lags * ds.dt:g} ms; mean cc_norm over {ds.N_neurons} neurons, 34 bands")
    print("  method                              validation    test   weights not 0   processor   of ridge")
    yardstick = float("nan")
    for name in names:
        title, method, joined = METHODS[name]
        begin = time.process_time()
        fit = method(both, n_lags=n_lags) if joined else method(train, validation, n_lags=n_lags)
        seconds = time.process_time() - begin
        yardstick = seconds if name == "ridge" else yardstick
        found = score_model(fit.model, test, n_bootstrap=0).mean("cc_norm").mean
        best = float(fit.scores["cc_norm"].max(0).values.nanmean()) if fit.scores else float("nan")
        used = float((fit.weight != 0).double().mean())
        print(
            f"  {title:34s}  {best:10.4f}  {found:.4f}   {used:13.0%}   {seconds:7.1f} s   {seconds / yardstick:8.1f}",
            flush=True,
        )


def bench_decoder(ds: NS1Dataset) -> None:
    """Print scores of the decoder for groups of neurons and windows."""
    train, validation, test = parse_split(ds, "14/3/3").apply(ds)
    print("\nDecoder of the 34 bands; mean correlation over bands on the test clips")
    print("  neurons   delays in ms      test   processor")
    for n_neurons in (10, 40, ds.N_neurons):
        for lags_ms in ((0, 50), (0, 250)):
            begin = time.process_time()
            fit = fit_decoder(train, validation, lags_ms=lags_ms, neurons=range(n_neurons))
            seconds = time.process_time() - begin
            score = float(fit.score(test).mean())
            print(
                f"  {n_neurons:7d}   {lags_ms[0]:4d} to {lags_ms[1]:4d}   {score:9.4f}   {seconds:7.1f} s",
                flush=True,
            )


def draw(path: str, n_lags: int, neuron: int | None, ds: NS1Dataset) -> None:
    """Draw the receptive field of one neuron by each method; by default that of the best validation score."""
    train, validation, _ = parse_split(ds, "14/3/3").apply(ds)
    if neuron is None:
        neuron = int(fit_ridge(train, validation, n_lags=n_lags).scores["cc_norm"].max(0).values.argmax())
    train, validation = (view.select(neurons=[neuron]) for view in (train, validation))
    fields, titles = [], []
    for name in DRAWN:
        title, method, _ = METHODS[name]
        fields.append(method(train, validation, n_lags=n_lags).model.STRFs()[0])
        titles.append(title.split(", 9")[0])
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    plot_strf_grid(fields, titles, ds.dt, ncols=len(DRAWN), frequencies_hz=ds.frequencies_hz, figure=figure)
    figure.savefig(path, dpi=130)
    print(f"neuron {neuron}: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lags", type=int, nargs="+", default=[15, 40])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--no-decoder", action="store_true")
    parser.add_argument("--figure", help="draw one neuron into this file instead")
    parser.add_argument("--neuron", type=int, help="which")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ds = NS1Dataset()
    if arguments.figure:
        draw(arguments.figure, arguments.lags[-1], arguments.neuron, ds)
        return
    print(f"NS1, {arguments.threads} threads")
    for n_lags in arguments.lags:
        bench(arguments.methods, n_lags, ds)
    if not arguments.no_decoder:
        bench_decoder(ds)


if __name__ == "__main__":
    main()
