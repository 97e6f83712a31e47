"""Seconds per epoch of a fit, against hand-written loops in the same process: `python benchmarks/bench_fit.py`.

The fit: Linear on NS1, 14 training clips one at a time, validation of 3 clips, cc and
cc_norm of both every epoch, from the spectrogram and from the waveform through a causal mel front-end.

The yardstick is a loop as somebody writes it who knows this recording and PyTorch: clips, mean responses and signal
powers are tensors made once, the spectrogram of the mel front-end too; an epoch is forward, squared error, backward and
step for each clip, and scores are six lines over the predictions. It works for this recording only (clips of one length,
nothing missing, a front-end that does not learn). The textbook loop iterates the DataLoader, averages repeats in the loss,
keeps predictions and responses of the epoch and scores them with the package's metrics: what a first version looks like.

Medians over epochs; the first epoch, which reads the clips and runs the front-end, stands apart. Without
NS1 (DEEPSTRF_DATA_DIR) the synthetic recording is used. Budgets are wall-clock seconds on 2 otherwise idle
cores; on a busy machine compare processor seconds, with --threads 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import neural_collate
from deepSTRF.datasets.audio import NS1Dataset, SyntheticDataset
from deepSTRF.metrics import corrcoef, mse_loss, normalized_corrcoef
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.training import Fitter

BUDGETS = {"spectrogram": 0.25, "mel": 0.30}
BUDGET_RSS_GB = 1.5


def recording(waveform: bool):
    root = os.environ.get("DEEPSTRF_DATA_DIR")
    if root and (Path(root) / "NS1" / "MetadataSHEnCneurons.mat").is_file():
        return NS1Dataset(return_waveform=waveform)
    return SyntheticDataset(n_neurons=119, n_clips=20, n_repeats=20, return_waveform=waveform)


def setting(waveform: bool):
    dataset = recording(waveform)
    torch.manual_seed(0)
    front_end = (
        CausalMelSpectrogram(dataset.audio_fs, n_mels=dataset.F, hop_ms=dataset.dt) if waveform else None
    )
    model = Linear(dataset.F, 9, dataset.N_neurons, wav2spec=front_end)
    options = {"batch_size": 1, "collate_fn": neural_collate}
    train = DataLoader(Subset(dataset, range(14)), shuffle=True, **options)
    return model, train, DataLoader(Subset(dataset, range(14, 17)), **options)


def now() -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    return time.perf_counter(), time.process_time()


def differences(marks) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]


def fit(model, train, val, epochs: int, fast: bool) -> list[tuple[float, float]]:
    marks = [now()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    Fitter(
        model, train, val, optimizer=optimizer, max_epochs=epochs, patience=epochs, fast=fast,
        log_fn=lambda record: marks.append(now()),
    ).fit()  # fmt: skip
    return differences(marks)


def score(pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pred, responses = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return (
        mse_loss(pred, responses),
        corrcoef(pred, responses, reduction="none"),
        normalized_corrcoef(pred, responses, reduction="none"),
    )


def textbook(model, train, val, epochs: int) -> list[tuple[float, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    marks = [now()]
    for _ in range(epochs):
        model.train()
        seen = []
        for batch in train:
            optimizer.zero_grad()
            pred = model(batch["stims"])
            loss = mse_loss(pred, batch["responses"])
            loss.backward()
            optimizer.step()
            loss.item()
            seen.append((pred.detach(), batch["responses"]))
        score(seen)
        model.eval()
        with torch.no_grad():
            score([(model(batch["stims"]), batch["responses"]) for batch in val])
        marks.append(now())
    return differences(marks)


def handwritten(model, train, val, epochs: int) -> list[tuple[float, float]]:
    """The loop of somebody who knows that clips have one length and that nothing is missing."""
    marks = [now()]
    dataset = train.dataset.dataset
    spectrograms = torch.stack(list(dataset.stims))
    if spectrograms.ndim == 3:  # waveforms (1, T_audio); the front-end does not learn
        with torch.no_grad():
            spectrograms = torch.stack([model.wav2spec(clip[None])[0] for clip in spectrograms])
    repeats = torch.stack([dataset.response_block(clip) for clip in range(len(dataset))]).float()
    psth, n_repeats = repeats.mean(2, keepdim=True), repeats.shape[2]
    noise = repeats.var(3).mean(2)  # of single repeats, (clips, N)
    signal = (n_repeats * psth.var(3).squeeze(2) - noise) / (n_repeats - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def scores(predictions, clips):
        pred = torch.stack(predictions, 1).flatten(1)  # (N, clips T)
        target = psth[clips].squeeze(2).transpose(0, 1).flatten(1)
        pred, target = pred - pred.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
        covariance, variance = (pred * target).mean(1), pred.square().mean(1)
        cc = covariance / (variance * target.square().mean(1)).sqrt()
        return cc, covariance / (variance * signal[clips].mean(0)).sqrt()

    trained, held_out = list(train.dataset.indices), list(val.dataset.indices)
    for _ in range(epochs):
        model.train()
        order = [trained[place] for place in torch.randperm(len(trained)).tolist()]
        seen, losses = [], []
        for clip in order:
            optimizer.zero_grad()
            pred = model.respond(spectrograms[clip][None])
            loss = functional.mse_loss(pred[0], psth[clip])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen.append(pred.detach()[0, :, 0])
        scores(seen, order)
        model.eval()
        with torch.no_grad():
            scores([model.respond(spectrograms[clip][None])[0, :, 0] for clip in held_out], held_out)
        marks.append(now())
    return differences(marks)


def line(name: str, times: list[tuple[float, float]], note: str = "") -> tuple[float, float]:
    wall, processor = (statistics.median(column) for column in zip(*times[1:], strict=True))
    print(
        f"  {name:<22} {wall:7.3f} s wall {processor:7.3f} s processor   first {times[0][0]:6.2f} s   {note}",
        flush=True,
    )
    return wall, processor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the fit (the others run a third)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (0 leaves them)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    epochs = max(3, arguments.epochs)
    few = max(3, epochs // 3)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    quick = {name: fit(*setting(name == "mel"), epochs, fast=True) for name in BUDGETS}
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kibibytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    for name, times in quick.items():
        print(f"Linear from the {name}, per epoch (median)")
        ours = line("Fitter", times, f"budget {BUDGETS[name]:.2f} s")
        line("Fitter, fast=False", fit(*setting(name == "mel"), few, fast=False))
        loops = {
            "hand-written loop": handwritten(*setting(name == "mel"), epochs),
            "textbook loop": textbook(*setting(name == "mel"), few),
        }
        for label, loop in loops.items():
            plain = line(label, loop)
            print(f"    against it: {plain[0] / ours[0]:.2f}x wall, {plain[1] / ours[1]:.2f}x processor")
        print(f"  {'within' if ours[0] <= BUDGETS[name] else 'over'} budget")
    print(f"peak memory of both fits {peak:.2f} GiB, budget {BUDGET_RSS_GB} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
