"""A mixture of experts through the public stages: trained, resumed on another mesh, sized up."""

import shutil

import pytest
import runs

from aludel.configs import named
from aludel.train.sizes import describe_config

EXPERTS = ["--model.experts", "4", "--model.mlp-width", "8", "--eval-every", "3"]
DIVIDED = ["--mesh.data", "1", "--mesh.expert", "4"]


@pytest.mark.slow
def test_a_run_goes_on_with_its_experts_divided(tmp_path):
    text = runs.write_text(tmp_path)
    alone, divided = tmp_path / "alone", tmp_path / "divided"

    def train(out, *mesh, devices=1):
        done = runs.run(runs.command(text, out, *EXPERTS, "--steps", "6", *mesh), devices)
        assert done.returncode == 0, done.stderr
        return done.stdout

    train(alone)
    shutil.copytree(alone, divided)
    shutil.rmtree(divided / "checkpoints" / "6")
    assert "resuming at step 3" in train(divided, *DIVIDED, devices=4)
    lines, others = runs.metrics(alone), runs.metrics(divided)
    assert [line["step"] for line in others] == list(range(7))
    assert lines[-1]["val_nats_per_token"] < lines[0]["val_nats_per_token"]
    names = ("loss_nats", "lm", "balance", "router_z", "busiest_expert_over_mean", "grad_norm")
    for line, other in zip(lines[1:], others[1:], strict=True):
        assert {n: other[n] for n in names} == pytest.approx({n: line[n] for n in names}, rel=1e-3)
        assert 1.0 <= line["busiest_expert_over_mean"] <= 2.0
        assert 1.5 < line["balance"] < 4.0  # of two layers, 1 each where all experts get as much
        parts = line["lm"] + 0.01 * line["balance"] + 0.001 * line["router_z"]
        assert line["loss_nats"] == pytest.approx(parts, rel=1e-5)


def test_sizes_of_a_mixture():
    said = "\n".join(describe_config(named("mixtral-8x7b")))
    assert "8 experts, 2 to a token, each an MLP 14,336 (swiglu)" in said
    assert "46,702,792,704" in said and "12,879,925,248" in said
    assert "blocks/experts/up/kernel" in said and "32 x 8 x 4,096 x 14,336" in said
