"""Settings of a fit as plain values, and the short names made from them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.metrics import mse_loss
from deepSTRF.training import ProtocolCard, auto_config, fit_multi_seed, slug_from_config

# names of runs as the loggers make them
from deepSTRF.training.run_config import LONGEST_NAME, path_safe


def test_the_documented_entries_of_a_model(kit, recording):
    model = kit.linear(output_activation=nn.Softplus())
    config = auto_config(model, dataset_name="NS1")
    assert config["model"] == "Linear"
    assert config["dataset"] == "NS1"
    sizes = config["n_frequency_bands"], config["temporal_window_size"], config["out_neurons"]
    assert sizes == (kit.BANDS, 3, kit.NEURONS)
    assert config["readout"] == "STRFReadout"
    assert config["readout.kernel"] == type(model.readout.strf.kernel).__name__
    assert config["readout.activation"] == "Softplus"
    assert config["core"] == config["prefiltering"] == "Identity"
    assert "optimizer" not in config, "nothing is claimed about a fit that nobody described"
    card = ProtocolCard.collect(recording, model=model)
    assert config["versions"] == card.versions
    assert {**config, "class": config["model"]}.items() >= card.model.items()


def test_any_module_will_do_and_extra_wins():
    config = auto_config(nn.Linear(2, 3), {"max_epochs": 4}, extra={"max_epochs": 5, "note": Path("a")})
    assert (config["model"], config["max_epochs"], config["note"]) == ("Linear", 5, "a")
    assert config["n_parameters"] == 9
    assert "n_frequency_bands" not in config
    frozen = nn.Linear(2, 3).requires_grad_(False)
    assert "optimizer" not in auto_config(frozen, {"max_epochs": 1})


def test_sizes_may_be_numbers_of_numpy():
    model = nn.Linear(1, 1)
    model.F, model.T, model.O = np.int64(34), lambda: 9, None
    config = auto_config(model)
    assert config["n_frequency_bands"] == 34
    assert type(config["n_frequency_bands"]) is int
    assert "temporal_window_size" not in config
    assert config["out_neurons"] is None


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3),
        partial(lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.3), lr=0.02),
    ],
)
def test_hyper_parameters_of_a_function_that_makes_the_optimiser(kit, make):
    facts = auto_config(kit.linear(), {"optimizer": make})["optimizer"]
    assert facts["class"] == "AdamW"
    assert (facts["lr"], facts["weight_decay"], facts["betas"]) == (0.02, 0.3, [0.9, 0.999])
    assert "groups" not in facts


def test_hyper_parameters_of_the_default_and_of_a_ready_optimiser(kit):
    assert auto_config(kit.linear(), {})["optimizer"]["lr"] == 1e-3
    model = kit.linear()
    ready = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    before = dict(ready.param_groups[0])
    config = auto_config(
        model, {"optimizer": ready, "scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=9.0)}
    )
    assert config["optimizer"]["momentum"] == 0.9
    assert config["scheduler"] == {"function": "OneCycleLR", "max_lr": 9.0}
    assert ready.param_groups[0] == before, "a fit's own optimiser is only read"


def test_groups_that_differ_are_listed(kit):
    def make(model):
        (first, *rest) = model.parameters()
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest}], lr=0.01, momentum=0.9)

    model = kit.linear()
    facts = auto_config(model, {"optimizer": make})["optimizer"]
    assert facts["momentum"] == 0.9
    assert "lr" not in facts
    assert [group["lr"] for group in facts["groups"]] == [0.1, 0.01]
    assert sum(group["n_parameters"] for group in facts["groups"]) == auto_config(model)["n_parameters"]


def test_schedules_and_other_objects(kit):
    arguments = {
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5),
        "loss_fn": partial(mse_loss, weighting="repeats"),
        "val_metrics": {"mse": mse_loss},
        "ckpt_path": Path("best.pt"),
        "device": torch.device("cpu"),
        "min_delta": float("inf"),
        "grad_clip": np.float32(0.5),
        "patience": torch.tensor(3),
        "front_end_cache": object(),
        "names": {"b", "a"},
        "model": "never hides the class",
        "weights": torch.zeros(1000),
    }
    config = auto_config(kit.linear(), arguments)
    assert config["scheduler"]["class"] == "StepLR"
    assert (config["scheduler"]["step_size"], config["scheduler"]["gamma"]) == (10, 0.5)
    assert config["loss_fn"] == {"function": "mse_loss", "weighting": "repeats"}
    assert config["val_metrics"] == {"mse": "mse_loss"}
    assert (config["ckpt_path"], config["device"], config["min_delta"]) == ("best.pt", "cpu", None)
    assert (config["grad_clip"], config["patience"], config["names"]) == (0.5, 3, ["a", "b"])
    assert config["front_end_cache"] == "<object object>", "no addresses: equal fits, equal configurations"
    assert config["model"] == "Linear"
    assert len(config["weights"]) <= 60
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert auto_config(kit.linear(), arguments) == config


def test_an_optimiser_that_the_fitter_refuses_is_refused(kit):
    with pytest.raises(TypeError, match="optimizer must be a"):
        auto_config(kit.linear(), {"optimizer": "AdamW"})


def test_describing_a_fit_changes_nothing_in_it(kit, recording):
    def fit(described):
        model = kit.linear()
        arguments = {"max_epochs": 1, "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1)}
        if described:
            auto_config(model, arguments)
        loaders = (*kit.loaders(recording, shuffle=False), kit.loaders(recording)[1])
        result = fit_multi_seed(lambda _: model, lambda _: loaders, 1, fitter_kwargs=arguments)
        return result["per_seed_test_loss"]

    assert torch.equal(fit(described=True), fit(described=False))


def test_slugs():
    config = {"model": "Linear", "dataset": "NS1", "temporal_window_size": 9, "n_frequency_bands": 34}
    assert slug_from_config(config) == "linear-ns1-T9-F34"
    assert slug_from_config({**config, "dataset": None}) == "linear-T9-F34"
    assert slug_from_config(config, [("dataset", str), ("none", str)]) == "NS1"
    with pytest.raises(ValueError, match="none of the fields"):
        slug_from_config({"seed": 1})


@pytest.mark.parametrize(
    "hostile", ["../../etc", "/root", "a\\b", "C:x", "a\0b", "a\nb", "..", ".", "", "x" * 999]
)
def test_a_slug_is_one_name_and_never_a_path(hostile, tmp_path):
    slug = slug_from_config({"dataset": hostile}, [("dataset", str)])
    assert Path(slug).name == slug
    assert not set(slug) & set('/\\:*?"<>|\0\n')
    assert len(slug.encode()) <= LONGEST_NAME
    (tmp_path / slug).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [slug]


def test_long_names_that_differ_late_stay_different():
    assert path_safe("x" * 200 + "a") != path_safe("x" * 200 + "b")
    assert len(path_safe("ü" * 200).encode()) <= LONGEST_NAME
