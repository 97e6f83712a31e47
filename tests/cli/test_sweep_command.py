"""`deepstrf sweep`: the table, what failed, exit codes."""

from __future__ import annotations

FILE = """
[dataset]
options = { n_neurons = 2, n_clips = 5, n_repeats = 4, clip_seconds = 0.5 }
split = "3/1/1"
[model]
name = "ridge"
[grid]
model_options.n_lags = [1, 2]
"""


def test_a_sweep_from_a_file(deepstrf, tmp_path):
    (tmp_path / "lags.toml").write_text(FILE, encoding="utf-8")
    status, out, _ = deepstrf("sweep", "lags.toml", "--dry-run")
    assert (status, "2 fits in runs/lags: 0 done, 0 failed" in out) == (0, True)
    assert not (tmp_path / "runs").exists()
    status, out, err = deepstrf("sweep", "lags.toml")
    assert (status, err) == (0, "")
    assert "2 fitted now, 0 read, 0 failed." in out
    assert "Best on validation: model_options.n_lags=" in out
    assert "Choose by the validation score" in out
    assert (tmp_path / "runs" / "lags" / "table.csv").is_file()
    status, out, _ = deepstrf("sweep", "lags.toml", "--out", "runs/lags")
    assert (status, "0 fitted now, 2 read, 0 failed." in out) == (0, True)


def test_a_failing_fit_is_told_with_status_1(deepstrf, tmp_path):
    text = FILE.replace("model_options.n_lags = [1, 2]", "dataset_options.n_clips = [5, 6]")
    (tmp_path / "clips.toml").write_text(text, encoding="utf-8")
    for words in (("--quiet",), ("--retry-failed",)):
        status, out, _ = deepstrf("sweep", "clips.toml", *words)
        assert status == 1
        assert "Failed: dataset_options.n_clips=6: ValueError: '3/1/1' gives roles to 5 clips" in out
        assert "--retry-failed fits these again" in out


def test_a_wrong_file_is_a_wrong_call(deepstrf, tmp_path):
    (tmp_path / "wrong.toml").write_text("[grid]\nmodel = ['liner']\n", encoding="utf-8")
    status, _, err = deepstrf("sweep", "wrong.toml")
    assert (status, "liner" in err, "model=liner" in err) == (2, True, True)
    assert deepstrf("sweep", "missing.toml")[0] == 2
    assert deepstrf("sweep", "wrong.toml", "--jobs", "0")[0] == 2
