"""Partitioned steps move what they must between devices, and hardly more."""

import jax
import pytest
from jax.sharding import Mesh

from aludel.model import DecoderConfig, Execution, MeshConfig, make_mesh
from aludel.train.ahead import lower_step
from aludel.train.collectives import Collective, collectives_of, moved_by_purpose, partitioned
from aludel.train.config import PretrainConfig
from aludel.train.least import least_moved

LAYERS, WIDTH, MLP, VOCAB, ROWS, LENGTH, HEADS, KV_HEADS = 4, 256, 704, 512, 16, 256, 8, 4
FLOAT = 4
ROOM = 1.1
SUMS = 100_000  # bytes of norms' scales, the loss's terms by row, sums of gradients' squares


def _config(
    mesh: MeshConfig, accumulation: int = 1, experts: int = 0, **model: object
) -> PretrainConfig:
    return PretrainConfig(
        model=DecoderConfig(
            vocab_size=VOCAB,
            layers=LAYERS,
            width=WIDTH,
            heads=HEADS,
            kv_heads=KV_HEADS,
            mlp_width=MLP,
            context=LENGTH,
            norm="rmsnorm",
            activation="swiglu",
            tied=False,
            experts=experts,
            **model,
        ),
        batch=ROWS,
        accumulation=accumulation,
        execution=Execution(
            scan=True,
            remat="full",
            attention="context" if mesh.context > 1 else "blocked",
            training="xla",
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, accumulation, experts, model",
    [
        (MeshConfig(data=1, fsdp=8), 1, 0, {}),
        (MeshConfig(data=2, fsdp=4), 1, 0, {}),
        (MeshConfig(data=8), 2, 0, {}),
        (MeshConfig(data=2, fsdp=4), 2, 0, {}),
        (MeshConfig(data=2, fsdp=2, tensor=2), 1, 0, {}),
        (MeshConfig(data=2, tensor=4), 2, 0, {}),
        (MeshConfig(data=1, fsdp=2, tensor=4), 1, 0, {}),
        (MeshConfig(data=1, fsdp=2, tensor=4), 1, 0, dict(dtype="bfloat16", bias=True)),
        (MeshConfig(data=1, fsdp=4, context=2), 1, 0, {}),
        (MeshConfig(data=1, fsdp=2, expert=4), 1, 8, {}),
        (MeshConfig(data=2, expert=4), 2, 8, {}),
    ],
    ids=str,
)
def test_a_step_moves_little_more_than_it_must(mesh, accumulation, experts, model):
    config, mesh = _config(mesh, accumulation, experts, **model), make_mesh(mesh)
    found = collectives_of(partitioned(lower_step(config, mesh)), mesh)
    moved, least = moved_by_purpose(found), least_moved(config, mesh.shape)
    for axis, bytes_moved in moved.items():
        assert bytes_moved <= ROOM * least[axis] + SUMS, f"{axis}: {bytes_moved / least[axis]:.2f}"
        assert bytes_moved >= 0.95 * least[axis], f"{axis}: less than can be"
    # One layer's largest matrix at a time: no stack of layers, and no activations.
    largest = FLOAT * WIDTH * MLP * max(1, experts // mesh.shape["expert"])
    gathered = [one for one in found if one.kind == "all-gather" and "fsdp" in one.axes]
    assert bool(gathered) == (mesh.shape["fsdp"] > 1)
    assert all(one.size <= largest for one in gathered)


TEXT = """HloModule one
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%body (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %all-gather.1 = f32[64,2]{1,0} all-gather(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
}

%condition (x: f32[8]) -> pred[] {
  %constant.1 = s32[] constant(5)
  ROOT %less = pred[] compare(%x, %constant.1), direction=LT
}

%twice (y: (u32[], f32[8])) -> (u32[], f32[8]) {
  %y = (u32[], f32[8]{0}) parameter(0)
  %number = u32[] get-tuple-element(%y), index=0
  %constant.2 = u32[] constant(1)
  %add.0 = u32[] add(%number, %constant.2)
  %add.1 = u32[] add(%add.0, %constant.2)
  %all-gather.2 = f32[8]{0} all-gather(%y), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  ROOT %tuple = (u32[], f32[8]{0}) tuple(%add.1, %all-gather.2)
}

%below (y: (u32[], f32[8])) -> pred[] {
  %y = (u32[], f32[8]{0}) parameter(0)
  %number = u32[] get-tuple-element(%y), index=0
  %constant.3 = u32[] constant(5)
  ROOT %compare = pred[] compare(%number, %constant.3), direction=LT
}

%one (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
}

%other (x: f32[8]) -> f32[8] {
  %all-to-all.1 = f32[8]{0} all-to-all(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while = f32[8]{0} while(%p), condition=%condition, body=%body
  %while.1 = (u32[], f32[8]{0}) while(%p), condition=%below, body=%twice
  %conditional = f32[8]{0} conditional(%p, %p, %p), branch_computations={%one, %other}
  %all-reduce.1 = f32[16]{0} all-reduce(%while), replica_groups=[4,2]<=[8], to_apply=%add
  %reshape.1 = f32[4,4]{1,0} reshape(%all-reduce.1)
  %dynamic-slice.1 = f32[2,4]{1,0} dynamic-slice(%reshape.1, %p), dynamic_slice_sizes={2,4}
  %all-reduce.2 = (bf16[16]{0}, bf16[4]{0}) all-reduce(%p, %p), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, to_apply=%add
  %reduce-scatter.1 = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %permute = f32[10]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_exchanges_are_read_from_the_text():
    """Groups in every notation, loops multiplied out, an all-reduce that is only sliced."""
    grid = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    mesh = Mesh(grid.devices.reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    assert collectives_of(TEXT, mesh) == [
        Collective("all-gather", ("data",), 2, 64 * 2 * 4, 5),
        Collective("all-gather", ("tensor",), 2, 8 * 4, 3),  # 0, 2, 4
        Collective("all-to-all", ("tensor",), 2, 8 * 4, 1),
        Collective("reduce-scatter", ("tensor",), 2, 16 * 4, 1),
        Collective("all-reduce", ("data",), 2, 20 * 2, 1),
        Collective("reduce-scatter", ("data", "fsdp"), 4, 2 * 4 * 4, 1),
        Collective("collective-permute", ("tensor",), 2, 10 * 4, 1),
    ]
    assert Collective("all-reduce", ("data",), 4, 100, 3).moved == 2 * 3 / 4 * 100 * 3
    assert Collective("all-gather", ("data",), 4, 100, 3).moved == 3 / 4 * 100 * 3
