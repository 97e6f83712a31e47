"""Several seeds: results, files, loggers, and what goes wrong in one of them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deepSTRF.training import FitDivergedError, FrontEndCache, fit_multi_seed

# no fit ends with a NaN score, the rule must hold all the same
from deepSTRF.training.multi_seed import _BestSeed


@pytest.fixture
def factories(kit, recording):
    from deepSTRF.models.audio import Linear

    def loader_factory(seed):
        train, val = kit.loaders(recording, generator=torch.Generator().manual_seed(seed))
        return train, val, kit.loaders(recording, val=[5])[1]

    return lambda seed: Linear(kit.BANDS, 3, kit.NEURONS), loader_factory


def run(factories, n_seeds=2, fitter_kwargs=None, **options):
    return fit_multi_seed(
        *factories, n_seeds, fitter_kwargs={"max_epochs": 2} | (fitter_kwargs or {}), **options
    )


def test_the_result_has_the_documented_keys(factories):
    state = torch.get_rng_state()
    result = run(factories, n_seeds=3)
    assert torch.equal(state, torch.get_rng_state()), "random states are put back"
    assert result["seeds"] == [0, 1, 2]
    assert [len(history) for history in result["per_seed_histories"]] == [2, 2, 2]
    for split in ("val", "test"):
        assert result[f"per_seed_{split}_cc_norm"].shape == (3, 4)
        assert result[f"per_seed_{split}_loss"].shape == (3, 1)
        table = result[f"per_seed_{split}_cc"]
        assert torch.allclose(result[f"mean_{split}_cc"], table.mean(0))
        assert torch.allclose(result[f"std_{split}_cc"], table.std(0, correction=0), atol=1e-6)
    best = int(result["per_seed_val_cc_norm"].nanmean(1).argmax())
    assert result["best_seed"] == best
    assert all(value.device.type == "cpu" for value in result["best_state_dict"].values())
    assert result["failed"] == {}
    again = run(factories, n_seeds=3)
    assert torch.equal(result["per_seed_test_cc"], again["per_seed_test_cc"])


def test_seeds_differ_and_can_be_named(factories):
    result = run(factories, seeds=[7, 3])
    assert result["seeds"] == [7, 3]
    assert not torch.equal(*result["per_seed_test_cc"])
    alone = run(factories, seeds=[3])
    assert torch.equal(alone["per_seed_test_cc"][0], result["per_seed_test_cc"][1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seeds": []}, "no seeds"),
        ({"n_seeds": 0}, "no seeds"),
        ({"seeds": [1, 1]}, "must all differ"),
        ({"fitter_kwargs": {"model": 1}}, "model is managed by fit_multi_seed"),
        ({"fitter_kwargs": {"val_loader": 1, "train_loader": 2}}, "train_loader, val_loader is managed"),
        ({"fitter_kwargs": {"monitor": "train_cc"}}, "must start with 'val_'"),
        (
            {"fitter_kwargs": {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)])}},
            "a function",
        ),
        ({"fitter_kwargs": {"scheduler": 3}}, "a function"),
    ],
)
def test_refused_before_anything_is_trained(factories, options, text):
    def never(seed):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=text):
        run((never, never), **options)


def test_an_unknown_monitor_fails_at_the_first_seed(factories):
    calls = []
    model_factory, loader_factory = factories
    counting = (lambda seed: (calls.append(seed), model_factory(seed))[1], loader_factory)
    with pytest.raises(KeyError, match="val_typo"):
        run(counting, fitter_kwargs={"monitor": "val_typo"})
    assert calls == [0]


def test_files_are_valid_json_and_weights(factories, tmp_path):
    def silent(pred, responses):
        return torch.tensor([0.5, math.nan, 0.25, 1.0])

    result = run(
        factories,
        output_dir=tmp_path / "out",
        fitter_kwargs={"val_metrics": {"s": silent}, "monitor": "val_s"},
    )
    names = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert names == sorted(
        [
            f"seed{k}/{name}"
            for k in (0, 1)
            for name in ("best.pt", "final.json", "final_neurons.pt", "history.json")
        ]
        + ["summary.json", "summary_neurons.pt"]
    )

    def strict(path):
        def refuse(literal):
            raise AssertionError(f"{literal} is not JSON")

        return json.loads((tmp_path / "out" / path).read_text(), parse_constant=refuse)

    summary = strict("summary.json")
    assert (summary["seeds"], summary["monitor"], summary["mode"]) == ([0, 1], "val_s", "max")
    assert summary["mean_val_s"]["n_valid"] == 3
    final = strict("seed0/final.json")
    assert final["test"]["s"] == {"mean": pytest.approx(1.75 / 3), "n_valid": 3, "p10": pytest.approx(0.3),
                                  "p50": 0.5, "p90": pytest.approx(0.9)}  # fmt: skip
    assert isinstance(final["val"]["loss"], float)
    assert strict("seed1/history.json")[1]["epoch"] == 1
    neurons = torch.load(tmp_path / "out/seed0/final_neurons.pt", weights_only=True)
    assert list(neurons["val"]) == ["s"], "scalars are in final.json"
    weights = torch.load(tmp_path / f"out/seed{result['best_seed']}/best.pt", weights_only=True)
    assert all(torch.equal(value, result["best_state_dict"][name]) for name, value in weights.items())


def test_checkpoints_get_the_seed_in_their_name(factories, tmp_path):
    run(factories, fitter_kwargs={"ckpt_path": tmp_path / "m.pt", "state_path": str(tmp_path / "s.state")})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m_seed0.pt",
        "m_seed1.pt",
        "s_seed0.state",
        "s_seed1.state",
    ]


class Logger:
    def __init__(self, seed, log):
        self.seed, self.log = seed, log

    def __call__(self, record):
        self.log.append((self.seed, record["epoch"]))

    def finalize(self, scores):
        self.log.append((self.seed, sorted(scores), sorted(scores["test"])))

    def close(self):
        self.log.append((self.seed, "closed"))


def test_loggers_and_log_functions_are_both_called(factories):
    log, lines = [], []
    run(factories, logger_factory=lambda seed: Logger(seed, log), fitter_kwargs={"log_fn": lines.append})
    assert log[:4] == [(0, 0), (0, 1), (0, ["test", "val"], ["cc", "cc_norm", "loss"]), (0, "closed")]
    assert len(lines) == 4


def test_a_logger_is_closed_when_the_fit_fails(factories):
    log = []
    with pytest.raises(KeyError):
        run(factories, logger_factory=lambda seed: Logger(seed, log), fitter_kwargs={"monitor": "val_typo"})
    assert log == [(0, "closed")]


def exploding(seed_to_lose):
    def factory(model):
        rate = 1e30 if model.seed == seed_to_lose else 1e-3
        return torch.optim.SGD(model.parameters(), lr=rate)

    return factory


def test_one_diverging_seed_is_reported_and_the_others_count(factories, tmp_path):
    model_factory, loader_factory = factories

    def named(seed):
        model = model_factory(seed)
        model.seed = seed
        return model

    with pytest.warns(RuntimeWarning, match="seed 1 diverged"):
        result = run((named, loader_factory), 3, {"optimizer": exploding(1)}, output_dir=tmp_path)
    assert list(result["failed"]) == [1]
    assert bool(result["per_seed_test_cc"][1].isnan().all())
    assert torch.allclose(result["mean_test_cc"], result["per_seed_test_cc"][[0, 2]].mean(0))
    assert result["best_seed"] in (0, 2)
    assert result["per_seed_histories"][1] == []
    assert "diverged" not in json.loads((tmp_path / "summary.json").read_text())["failed"].get("0", "")
    with pytest.warns(RuntimeWarning), pytest.raises(FitDivergedError):
        run((named, loader_factory), fitter_kwargs={"optimizer": exploding(1)}, seeds=[1])


def test_the_best_seed_is_never_a_nan_one():
    model = torch.nn.Linear(1, 1)
    for mode, wanted in (("max", 2), ("min", 1)):
        best = _BestSeed("val_s", mode)
        for seed, score in enumerate([math.nan, 0.3, 0.7, math.nan]):
            best.offer(seed, {"s": score}, model)
        assert best.seed == wanted


def test_spectrograms_are_shared_between_the_seeds(kit, sound_recording):
    cache = FrontEndCache()
    fit_multi_seed(
        lambda seed: kit.linear(kit.PowerBands()),
        lambda seed: (*kit.loaders(sound_recording), kit.loaders(sound_recording, val=[5])[1]),
        2,
        fitter_kwargs={"max_epochs": 1, "front_end_cache": cache},
    )
    assert (len(cache), cache.misses) == (6, 6)
