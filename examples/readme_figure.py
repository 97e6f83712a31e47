"""The picture of the README: a ferret's neuron, its response to a clip no fit heard, its receptive field.

    python examples/readme_figure.py                    # ridge only, about half a minute; needs NS1
    python examples/readme_figure.py runs/gated         # the prediction of a fitted run (clips split 14/3/3)

The receptive field is the ridge estimate of 200 ms. Drawn twice, for light and for dark pages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.experiments import Run
from deepSTRF.training import score_model

#: Part of the clip that is drawn.
SHOWN_S = (0.0, 3.0)
#: Page, ink, PSTH, prediction, spectrogram, receptive field.
THEMES = {
    "light": ("#FFFFFF", "#222222", "#C4C4C4", "#D55E00", "Greys", "RdBu_r"),
    "dark": ("#0D1117", "#D5DAE0", "#555C66", "#FF8C3A", "gray", "berlin"),
}


def draw(theme: str, panels: dict[str, np.ndarray], texts: dict[str, str], dt_ms: float) -> Figure:
    """The figure in one theme."""
    page, ink, grey, line, spectrum, diverging = THEMES[theme]
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False} | dict.fromkeys(keys, ink)
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.6, 3.5), layout="constrained", facecolor=page)
        grid = figure.add_gridspec(2, 2, width_ratios=(3, 1), height_ratios=(1, 1.25))
        kilohertz = panels["frequencies"] / 1000
        seconds = SHOWN_S[0] + (np.arange(panels["psth"].size) + 0.5) * dt_ms / 1000
        sound = figure.add_subplot(grid[0, 0], facecolor=page)
        sound.pcolormesh(seconds, kilohertz, panels["sound"], cmap=spectrum, rasterized=True)
        sound.set_title(texts["sound"], loc="left", size=9.5)
        sound.tick_params(labelbottom=False)
        rate = figure.add_subplot(grid[1, 0], sharex=sound, facecolor=page)
        rate.fill_between(seconds, panels["psth"], step="mid", color=grey, lw=0, label=texts["psth"])
        rate.plot(seconds, panels["prediction"], color=line, lw=1.5, label=texts["prediction"])
        rate.set(xlabel="seconds", ylabel="spikes per s", xlim=SHOWN_S, ylim=(0, 1.25 * panels["psth"].max()))
        rate.legend(loc="upper left", ncols=2, frameon=False)
        field = figure.add_subplot(grid[:, 1], facecolor=page)
        strf = panels["strf"][:, -20:]  # the 100 ms in which something happens
        lags = -(np.arange(strf.shape[1])[::-1] + 0.5) * dt_ms
        limit = float(np.abs(strf).max())
        field.pcolormesh(lags, kilohertz, strf, cmap=diverging, vmin=-limit, vmax=limit, rasterized=True)
        field.set_title(texts["strf"], loc="left", size=9.5)
        field.set_xlabel("ms before the response")
        for axis in (sound, field):
            axis.set(yscale="log", ylabel="kHz", yticks=[1, 2, 4, 8, 16], yticklabels=[1, 2, 4, 8, 16])
            axis.minorticks_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, help="run folder of a fit to NS1 split 14/3/3")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the figures")
    parser.add_argument("--neuron", type=int, help="default: a high score, and a clear receptive field")
    arguments = parser.parse_args()
    ds = NS1Dataset()
    split = parse_split(ds, "14/3/3")
    train, validation, test = split.apply(ds)
    ridge = fit_ridge(train, validation, n_lags=40)
    model, name = ridge.model, "linear model"
    if arguments.run is not None:
        model = Run.load(arguments.run).load_model()
        name = type(model).__name__
    table = score_model(model, test, n_bootstrap=0)
    strfs = ridge.weight[:, 0].numpy()
    size = np.abs(strfs)
    clear = size.max((1, 2)) / size.mean((1, 2))
    neuron = arguments.neuron
    if neuron is None:
        neuron = int(np.nanargmax(table["cc_norm"] * clear))
    psths = [ds.response_block(i)[neuron].mean(0).numpy() for i in split.test]
    shown = slice(*(round(1000 * edge / ds.dt) for edge in SHOWN_S))
    place = int(np.argmax([psth[shown].std() for psth in psths]))
    clip = split.test[place]
    per_second = 1000 / ds.dt
    panels = {
        "frequencies": np.asarray(ds.frequencies_hz),
        "sound": ds.stims[clip][0, :, shown].numpy(),
        "psth": psths[place][shown] * per_second,
        "prediction": np.maximum(model.predict(ds, clips=[clip])[0][neuron].numpy()[shown], 0) * per_second,
        "strf": strfs[neuron],
    }
    score = table["cc_norm"][neuron]
    texts = {
        "sound": f"{ds.stim_meta[clip]['type'].replace('_', ' ')}, a clip that no fit heard",
        "psth": "ferret auditory cortex, 20 repeats",
        "prediction": f"{name}, cc_norm {score:.2f}",
        "strf": "its receptive field",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        file = arguments.out / f"readme-{theme}.png"
        figure = draw(theme, panels, texts, ds.dt)
        figure.savefig(file, dpi=160, metadata={"Software": None}, facecolor=figure.get_facecolor())
        print(f"{file}: neuron {neuron}, clip {clip}, cc_norm {score:.2f}")


if __name__ == "__main__":
    main()
