"""Kernels of the linear model on NS1, from their default start and from ridge: `python benchmarks/bench_kernels.py`.

Same budget for all: AdamW at 1e-3, one clip a step, 100 epochs, patience 30 on the validation cc_norm, 14/3/3 clips,
standardised bands, seed 0. The question is whether a kernel of few parameters reaches the validation score of the full one.
Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import time

import torch

from deepSTRF.baselines import fit_ridge, start_from_ridge
from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.datasets.splits import parse_split
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders, score_model, seeded
from results_page import table

KERNELS = {
    "full": None,
    "separable, rank 1": {"kernel": "separable"},
    "separable, rank 2": {"kernel": "separable", "rank": 2},
    "4 Gaussians": {"kernel": "parametric", "num_gaussians": 4},
    "8 Gaussians": {"kernel": "parametric", "num_gaussians": 8},
}


def mean_score(model: Linear, view: NS1Dataset) -> float:
    return score_model(model, view, n_bootstrap=0).mean("cc_norm").mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lags", type=int, nargs="+", default=[9, 15])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    ds = NS1Dataset()
    train, validation, test = parse_split(ds, "14/3/3").apply(ds)
    rows = []
    for n_lags in arguments.lags:
        ridge = fit_ridge(train, validation, n_lags=n_lags)
        for name, kernel in KERNELS.items():
            for start in ("default", "ridge"):
                with seeded(0):
                    model = Linear(ds.F, n_lags, ds.N_neurons, kernel=kernel, standardize=True)
                model.fit_standardization(train.stims)
                if start == "ridge":
                    start_from_ridge(model, ridge, train)
                before = mean_score(model.eval(), validation)
                loaders = make_loaders(train, validation, batch_size=1, seed=0)
                begin = time.process_time()
                fitter = Fitter(
                    model,
                    *loaders,
                    optimizer=torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.0),
                    max_epochs=arguments.epochs,
                    patience=30,
                    monitor="val_cc_norm",
                    progress=False,
                    seed=0,
                )
                fitter.fit()
                rows.append(
                    [f"{n_lags}", name, f"{model.count_trainable_params():,}", start, f"{before:.3f}"]
                    + [f"{mean_score(model, view):.4f}" for view in (validation, test)]
                    + [f"{fitter.best_epoch}", f"{time.process_time() - begin:.0f} s"]
                )
    header = ["lags", "kernel", "parameters", "start", "validation at the start", "validation", "test"]
    print(table([*header, "best epoch", "processor time"], rows))


if __name__ == "__main__":
    main()
