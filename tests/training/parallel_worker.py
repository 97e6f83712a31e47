"""Fits of `test_fit_parallel.py`, run by one process or by two: `python parallel_worker.py OUTPUT [one]`.

Two processes with batches of b clips are to give what one process with batches of 2 b clips gives.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.metrics import corrcoef, poisson_loss
from deepSTRF.models.audio import Linear
from deepSTRF.training import FitDivergedError, Fitter, make_loaders

BANDS, NEURONS = 5, 4
RAGGED = (60, 45, 52, 60, 38, 41, 47)


def recording(missing: bool) -> AudioNeuralDataset:
    """Seven ragged clips; with ``missing`` some neurons have not heard some of them, or parts of them."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(NEURONS, BANDS, 3, generator=generator)
    stims, responses = [], []
    for clip, length in enumerate(RAGGED):
        stim = torch.rand(BANDS, length, generator=generator)
        drive = nn.functional.conv1d(nn.functional.pad(stim[None], (2, 0)), weight)[0].clamp(min=0.05)
        counts = torch.poisson(drive.unsqueeze(1).expand(-1, 5, -1).contiguous(), generator=generator)
        if missing:
            counts[clip % NEURONS] = torch.nan  # this neuron did not hear the clip
            counts[(clip + 1) % NEURONS, 2:, 20:] = torch.nan
        stims.append(stim)
        responses.append(counts)
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0)


class Ended(nn.Module):
    """A model of a user's own with batch normalisation over channels and a loss that is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(BANDS, NEURONS, 1, bias=False)
        self.norm = nn.BatchNorm1d(NEURONS, momentum=None)

    def forward(self, x):
        return self.norm(self.mix(x[:, 0])).unsqueeze(2)


def scalar_loss(pred, responses):
    """Mean over all valid bins of all neurons: a number, not one per neuron."""
    target = responses.nanmean(2, keepdim=True)
    valid = ~target.isnan()
    return (pred[valid] - target[valid]).square().mean()


def explosive_loss(pred, responses):
    """Infinite for one clip: for the process that holds it."""
    bins = int((~responses[0, 0, 0].isnan()).sum())
    return scalar_loss(pred, responses) * (torch.inf if bins == RAGGED[4] else 1.0)


#: name: (missing pairs, training clips, batch size, options of the model, arguments of the fit)
CASES = {
    "even": (False, [0, 1, 2, 3], 1, {"norm": "none"}, {}),
    "odd": (True, [0, 1, 2, 3, 4], 1, {"norm": "none"}, {"grad_clip": 0.5}),
    "pairs": (True, [0, 1, 2, 3, 4], 2, {"norm": "none", "standardize": True}, {"warmup_ms": 20.0}),
    "norm": (True, [0, 1, 2, 3, 4], 1, {}, {"val_metrics": {"r": corrcoef}, "monitor": "val_loss"}),
    "poisson": (False, [0, 1, 2], 1, {"norm": "none", "output_activation": "softplus"},
                {"loss_fn": poisson_loss, "monitor": "val_cc", "track_train_metrics": False}),
    "plain": (True, [0, 1, 2, 3, 4], 1, {"norm": "none"}, {"fast": False, "track_per_cell_best": True}),
    "own": (False, [0, 1, 2, 3, 4], 1, None, {"loss_fn": scalar_loss}),
    "stopping": (False, [0, 1, 2], 1, {"norm": "none"},
                 {"patience": 2, "max_epochs": 40,
                  "scheduler": lambda o: ReduceLROnPlateau(o, "max", 0.3, patience=0)}),
}  # fmt: skip


def build(name: str, size: int, **arguments) -> Fitter:
    missing, train, batch, options, chosen = CASES[name]
    ds = recording(missing)
    torch.manual_seed(1)
    model = Ended() if options is None else Linear(BANDS, 3, NEURONS, **options)
    arguments = {"max_epochs": 3, "progress": False, **chosen, **arguments}
    # loss_fn and optimizer in double precision: what differs is the order of sums alone
    model = model.double()
    loaders = make_loaders(
        ds.select(clips=train), ds.select(clips=[5, 6, 4]), batch_size=batch * size, seed=7
    )
    arguments.setdefault("optimizer", lambda m: torch.optim.AdamW(m.parameters(), lr=0.05))
    return Fitter(model, *loaders, **arguments)


def result(fitter: Fitter) -> dict:
    history = fitter.fit()
    return {
        "weights": dict(fitter.model.state_dict()),
        "history": history,
        "best": fitter.best_epoch,
        "evaluated": fitter.evaluate(fitter.val_loader),
    }


def together(folder: Path) -> None:
    """All cases on two processes."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    rank, found = fabric.global_rank, {}
    for name in CASES:
        torch.manual_seed(rank)  # only the first process's states may count
        found[name] = result(build(name, 1, fabric=fabric))
    files = {"ckpt_path": folder / f"best{rank}.pt", "state_path": folder / "state.pt"}
    log: list[int] = []
    build("odd", 1, fabric=fabric, max_epochs=2, log_fn=lambda r: log.append(r["epoch"]), **files).fit()
    fabric.barrier()
    found["log"] = log
    found["resumed"] = result(build("odd", 1, fabric=fabric, **files))
    found["other weights"] = result(_other_weights(build("even", 1, fabric=fabric), rank))
    fitter = build("even", 1, fabric=fabric, loss_fn=explosive_loss, val_metrics=None)
    fitter.train_loader = make_loaders(recording(False).select(clips=[0, 4, 1]), seed=3)[0]
    try:
        fitter.fit()
    except FitDivergedError as error:
        found["diverged"] = error.epoch
    half = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="bf16-mixed")
    half.launch()
    fitter = build("even", 1, fabric=half, max_epochs=1)
    found["precision"] = fitter.precision, len(fitter.fit())
    torch.save(found, folder / f"two{rank}.pt")
    fabric.barrier()


def _other_weights(fitter: Fitter, rank: int) -> Fitter:
    """A second process that was built with other weights."""
    with torch.no_grad():
        for parameter in fitter.model.parameters():
            parameter.add_(0.1 * rank)
    return fitter


def alone(folder: Path) -> None:
    """The same in one process, with batches twice as large."""
    torch.save({name: result(build(name, 2)) for name in CASES}, folder / "one.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        (alone if sys.argv[2:] == ["one"] else together)(Path(sys.argv[1]))
