"""A fitted core for new neurons, with 1, 3 and 10 minutes of them: `python benchmarks/bench_transfer.py [--draws 3]`.

Minutes are minutes of recording: clips times repeats times their length. Of NS1 the core is fitted on 80 of the 119 neurons
(drawn once, seed 0), clips 0-13, its epoch chosen on clips 14-16; of the simulated population on 24 of 48. For the other
neurons a draw takes some of the clips 0-16 and some of their repeats, a part of which validates; all methods get the same.
Scores are on clips 17-19 with all repeats, which trained and chose nothing. Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import AudioNeuralDataset, NS1Dataset, SyntheticDataset
from deepSTRF.metrics import poisson_loss
from deepSTRF.models.audio import StateNet
from deepSTRF.training import Fitter, make_loaders, score_model
from results_page import machine, table, write_section

#: Name: (neurons of the core, {minutes: (clips, repeats, clips of them that validate)}).
PLANS: dict[str, tuple[int, dict[int, tuple[int, int, int]]]] = {
    "NS1": (80, {1: (3, 4, 1), 3: (9, 4, 2), 10: (12, 10, 3)}),  # clips of 5 s
    "simulated": (24, {1: (3, 10, 1), 3: (9, 10, 2), 10: (15, 20, 3)}),  # clips of 2 s
}
LAGS = 40
#: Longest fit in steps, and steps without a better epoch after which it ends.
MOST_STEPS, PATIENCE = 400, 100
#: The same of the core.
CORE_STEPS = (1400, 420)


def recording(name: str) -> Any:
    """The whole recording."""
    return NS1Dataset() if name == "NS1" else SyntheticDataset(n_neurons=48, n_clips=20, n_repeats=20)


def few(ds: Any, clips: Sequence[int], repeats: int, rng: np.random.Generator) -> Any:
    """Some clips with some of their repeats."""
    blocks = []
    for clip in clips:
        block = ds.response_block(clip).numpy()
        blocks.append(block[:, rng.permutation(block.shape[1])[:repeats]])
    stims = [ds.stims[clip][0].numpy() for clip in clips]
    return AudioNeuralDataset.from_arrays(
        stims, blocks, dt_ms=ds.dt, nrn_meta=[dict(row) for row in ds.nrn_meta], check_alignment=False
    )


def fit(
    model: Any,
    train: Any,
    validation: Any,
    groups: Callable[[Any], Any],
    steps: int = MOST_STEPS,
    patience: int = PATIENCE,
) -> Any:
    """Fit in place, with early stopping; returns the model."""
    fitter = Fitter(
        model,
        *make_loaders(train, validation, seed=0),
        loss_fn=poisson_loss,
        optimizer=lambda one: torch.optim.AdamW(groups(one), weight_decay=0.0),
        max_epochs=steps // len(train),
        patience=patience // len(train),
        track_train_metrics=False,
        progress=False,
    )
    fitter.fit()
    return model


def one_rate(model: Any) -> list[dict[str, Any]]:
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 3e-3}]


def slower_core(model: Any) -> list[dict[str, Any]]:
    rest = [p for name, p in model.named_parameters() if not name.startswith("readout.")]
    return [{"params": list(model.readout.parameters()), "lr": 3e-3}, {"params": rest, "lr": 3e-4}]


def new_net(n_bands: int, n: int, seed: int) -> StateNet:
    torch.manual_seed(seed)
    return StateNet(n_bands, out_neurons=n, standardize=True)


def features(core: Any, ds: Any) -> Any:
    """The recording with the core's features in the place of its stimuli."""
    with torch.no_grad():
        made = [core.core(core.prefiltering(core._standardized(stim[None])))[0].numpy() for stim in ds.stims]
    blocks = [ds.response_block(clip).numpy() for clip in range(len(ds))]
    return AudioNeuralDataset.from_arrays(
        made, blocks, dt_ms=ds.dt, nrn_meta=[dict(row) for row in ds.nrn_meta], check_alignment=False
    )


class OnFeatures:
    """A ridge readout of a core, which is scored on the features."""

    def __init__(self, core: Any, train: Any, validation: Any) -> None:
        self.core = core.eval()
        self.model = fit_ridge(features(core, train), features(core, validation), n_lags=1).model


def methods(core: Any, train: Any, validation: Any, seed: int) -> dict[str, Callable[[], Any]]:
    """What is compared: name to a call that fits and returns a model."""
    n = train.N_neurons

    def transferred(freeze: bool) -> Any:
        torch.manual_seed(seed)
        return core.transfer(n, freeze=freeze)

    return {
        "frozen core, new readout": lambda: fit(transferred(True), train, validation, one_rate),
        "frozen core, readout by ridge": lambda: OnFeatures(core, train, validation),
        "core fine-tuned at a tenth of the rate": lambda: fit(
            transferred(False), train, validation, slower_core
        ),
        "the same model from nothing": lambda: fit(new_net(train.F, n, seed), train, validation, one_rate),
        f"ridge STRFs, {LAGS} lags": lambda: fit_ridge(train, validation, n_lags=LAGS).model,
    }


def score(model: Any, view: Any) -> float:
    """Mean cc_norm on the test clips."""
    if isinstance(model, OnFeatures):
        model, view = model.model, features(model.core, view)
    model.fitted_on = None  # what arrays of a view state is less than what the recording does
    return float(score_model(model, view, n_bootstrap=0).mean("cc_norm").mean)


def compare(name: str, draws: int) -> Iterator[tuple[int, str]]:
    """Fit everything on one recording; after each draw, how many there are, a line on the core, and the table."""
    ds = recording(name)
    n_core, plan = PLANS[name]
    order = np.random.default_rng(0).permutation(ds.N_neurons)
    mine, theirs = (ds.select(neurons=sorted(part.tolist())) for part in np.split(order, [n_core]))
    test = range(17, 20)
    begin = time.process_time()
    core = fit(
        new_net(ds.F, n_core, 0),
        mine.select(clips=range(14)),
        mine.select(clips=range(14, 17)),
        one_rate,
        *CORE_STEPS,
    )
    fact = f"{name}: the core on its own {n_core} neurons {score(core, mine.select(clips=test)):.3f}; "
    fact += f"{time.process_time() - begin:.0f} s of processor time. {theirs.N_neurons} new neurons."
    print(fact, flush=True)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for draw in range(draws):
        for minutes, (n_clips, n_repeats, n_validation) in plan.items():
            rng = np.random.default_rng([minutes, draw])
            data = few(theirs, rng.permutation(17)[:n_clips].tolist(), n_repeats, rng)
            n_train = n_clips - n_validation
            parts = data.select(clips=range(n_train)), data.select(clips=range(n_train, n_clips))
            for method, make in methods(core, *parts, draw).items():
                begin = time.process_time()
                model = make()
                spent = time.process_time() - begin
                one = (score(model, theirs.select(clips=test)), spent)
                found.setdefault(method, {}).setdefault(minutes, []).append(one)
                print(f"  {minutes} min, draw {draw}, {method}: {one[0]:.3f}, {spent:.1f} s", flush=True)
        yield draw + 1, f"{fact}\n\n{rendered(found)}"


def rendered(found: dict[str, dict[int, list[tuple[float, float]]]]) -> str:
    """The table of scores and seconds by method and minutes."""
    rows = []
    for method, by_minutes in found.items():
        cells = []
        for values in by_minutes.values():
            scores = np.array([one for one, _ in values])
            cells.append(f"{scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f})")
        seconds = np.mean([spent for values in by_minutes.values() for _, spent in values])
        rows.append([method, *cells, f"{seconds:.1f} s"])
    minutes = next(iter(found.values()))
    return table(["", *(f"{one} min" for one in minutes), "processor time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--draws", type=int, default=3, help="draws of clips and repeats for each amount of data"
    )
    parser.add_argument("--recordings", nargs="+", default=list(PLANS), choices=list(PLANS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    how = " ".join(__doc__.split("\n\n", 1)[1].split())
    for name in arguments.recordings:
        command = f"`python benchmarks/bench_transfer.py --recordings {name}`"
        for n, lines in compare(name, arguments.draws):
            foot = (
                f"Mean test cc_norm over the new neurons: mean (lowest to highest) over {n} draws. `StateNet` with its defaults, "
                f"Poisson loss, at most {MOST_STEPS} steps with early stopping on the draw's validation clips."
            )
            body = "\n\n".join([command, machine(), how, lines, foot])
            write_section(f"transfer-{name.lower()}", f"A fitted core for new neurons: {name}", body)


if __name__ == "__main__":
    main()
