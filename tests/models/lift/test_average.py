"""Averages of models: at the ends they are the parents, between them what the formulas say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from taillift.models.bundle.session import load_graph
from taillift.models.lift.average import AVERAGED, Average
from taillift.models.lift.head import CosineHead, LayerNormHead, LinearHead
from taillift.models.lift.model import Model, merge
from taillift.models.lift.onnx_export import write_graph
from taillift.models.lift.tuners import (
    SSF,
    AdaptFormer,
    Bias,
    Full,
    LayerNorms,
    LoRA,
    Sparse,
    Tuner,
)
from taillift.models.lift.tuners.bottleneck import AdaptFormerBranch
from tests.support.towers import CLASSES, PIXELS, WIDTH, attach, error, features, shake, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: list[list[Tuner]] = [
    [AdaptFormer(rank=4)],
    [Full()],
    [LoRA(rank=2, where="both")],
    [SSF(), Bias()],
    [LayerNorms(), Sparse(ratio=0.1)],
    [Full(), AdaptFormer(rank=3)],
    [],
]
SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 0.1)


def parent(tuners: Sequence[Tuner], seed: int, scaled: bool = False) -> Model:
    """Return a model as if it were trained, with a head of its own."""
    rows = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return shake(attach(tiny(scaled=scaled, head=CosineHead(rows, 16)), tuners), seed).eval()


def average(parents: Sequence[Model], shares: Sequence[float], into: Model) -> None:
    mixture = Average(into)
    for model, share in zip(parents, shares, strict=True):
        mixture.add(model, share)
    mixture.finish()


def averaged(parents: Sequence[Model], shares: Sequence[float], scaled: bool = False) -> Model:
    branches = [
        [part.down.out_features for part in one.tower.blocks[0].beside_mlp]  # type: ignore[union-attr]
        for one in parents
    ]
    rank = sum(map(sum, branches))  # type: ignore[arg-type]
    empty = tiny(scaled=scaled, head=CosineHead(torch.zeros(CLASSES, WIDTH), 16))
    into = attach(empty, [AdaptFormer(rank=rank)] if rank else [])
    average(parents, shares, into)
    return into.eval()


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    result: torch.Tensor = model(PIXELS)[0]
    return result


def test_every_method_that_folds_is_tried() -> None:
    assert {type(tuner) for tuners in METHODS for tuner in tuners} == set(AVERAGED)


@settings(max_examples=20)
@given(
    methods=st.lists(st.sampled_from(METHODS), min_size=2, max_size=3),
    chosen=st.integers(0, 1),
    scaled=st.booleans(),
)
def test_with_a_whole_share_it_is_that_parent(
    methods: list[list[Tuner]], chosen: int, scaled: bool
) -> None:
    parents = [parent(tuners, seed, scaled) for seed, tuners in enumerate(methods)]
    made = averaged(parents, [float(n == chosen) for n in range(len(parents))], scaled)
    assert error(features(made), features(parents[chosen])) < 1e-5
    assert float((logits(made) - logits(parents[chosen])).abs().max()) < 3e-5


@settings(max_examples=15)
@given(share=st.floats(0, 1), scaled=st.booleans())
def test_from_lift_to_full_weights_go_there_and_the_branch_fades(
    share: float, scaled: bool
) -> None:
    lift, full = parent([AdaptFormer(rank=4)], 1, scaled), parent([Full()], 2, scaled)
    expected = parent([AdaptFormer(rank=4)], 1, scaled)
    with torch.no_grad():
        for name, tensor in full.tower.named_parameters():
            expected.tower.get_parameter(name).lerp_(tensor, share)
        for block in expected.tower.blocks:
            branch = block.beside_mlp[0]
            assert isinstance(branch, AdaptFormerBranch)
            branch.scale.mul_(1 - share)
    made = averaged([lift, full], [1 - share, share], scaled)
    torch.testing.assert_close(features(made), features(expected), rtol=1e-5, atol=1e-5)


@given(share=st.floats(0, 1))
@settings(max_examples=10)
def test_low_rank_changes_are_averaged_by_their_products(share: float) -> None:
    one, two = parent([LoRA(rank=2)], 1), parent([LoRA(rank=5)], 2)
    made, start = averaged([one, two], [1 - share, share]), tiny()
    for ours, first, second, plain in zip(
        *(model.tower.blocks for model in (made, merge(one), merge(two), start)), strict=True
    ):
        base = plain.attention.qkv.weight
        changes = [parent.attention.qkv.weight - base for parent in (first, second)]
        expected = base + (1 - share) * changes[0] + share * changes[1]
        torch.testing.assert_close(ours.attention.qkv.weight, expected)


@given(parts=SHARES)
@settings(max_examples=10)
def test_outputs_of_branches_are_averaged(parts: list[float]) -> None:
    parents = [parent([AdaptFormer(rank=rank)], rank) for rank in (1, 4, 8)]
    shares = [part / sum(parts) for part in parts]
    made = averaged(parents, shares)
    tokens = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block, *others in zip(*(m.tower.blocks for m in (made, *parents)), strict=True):
            expected = sum(
                share * other.beside_mlp[0](tokens)
                for share, other in zip(shares, others, strict=True)
            )
            torch.testing.assert_close(block.beside_mlp[0](tokens), expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_only_one_parent_tunes_are_averaged_too() -> None:
    one = parent([AdaptFormer(rank=2)], 1)
    two = tiny(head=CosineHead(torch.randn(CLASSES, WIDTH), 16))
    AdaptFormer(rank=3).attach(two.tower.blocks[-1:])
    two = shake(two, 2).eval()
    for chosen, original in enumerate((one, two)):
        made = tiny(head=CosineHead(torch.zeros(CLASSES, WIDTH), 16))
        average([one, two], [1.0 - chosen, float(chosen)], attach(made, [AdaptFormer(rank=5)]))
        assert error(features(made.eval()), features(original)) < 1e-5


def test_rows_meet_at_unit_length_and_weights_with_a_bias_as_they_are() -> None:
    rows = [torch.randn(CLASSES, WIDTH) * length for length in (1, 100)]
    unit = [F.normalize(each, dim=-1) for each in rows]
    for kind in (lambda weight: CosineHead(weight, 16), LayerNormHead):
        into = tiny(head=kind(torch.zeros(CLASSES, WIDTH)))
        average([tiny(head=kind(each)) for each in rows], [0.25, 0.75], into)
        torch.testing.assert_close(into.head.weight, 0.25 * unit[0] + 0.75 * unit[1])
    heads = [LinearHead(each) for each in rows]
    torch.nn.init.ones_(heads[1].bias)
    into = tiny(head=LinearHead(torch.zeros(CLASSES, WIDTH)))
    average([tiny(head=head) for head in heads], [0.25, 0.75], into)
    torch.testing.assert_close(into.head.weight, 0.25 * rows[0] + 0.75 * rows[1])
    torch.testing.assert_close(into.head.get_parameter("bias"), torch.full((CLASSES,), 0.75))


@pytest.mark.parametrize("chosen", [0, 1])
def test_an_exported_average_with_a_whole_share_gives_what_that_parent_gives(
    chosen: int, tmp_path: Path
) -> None:
    parents = [parent([AdaptFormer(rank=4)], 1), parent([Full()], 2)]
    made = averaged(parents, [1.0 - chosen, float(chosen)])
    path = tmp_path / "model.onnx"
    write_graph(merge(made), PIXELS[:2], path, ["pixels"], ["logits", "features"])
    (served, _) = load_graph(path).run(None, {"pixels": PIXELS.numpy()})
    assert np.abs(served - logits(parents[chosen]).numpy()).max() < 1e-5


def test_parents_stay_as_they_were() -> None:
    parents = [parent([AdaptFormer(rank=4)], 1), parent([LoRA(rank=2)], 2)]
    before = [features(one) for one in parents]
    averaged(parents, [0.5, 0.5])
    assert all(torch.equal(a, features(b)) for a, b in zip(before, parents, strict=True))
