import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.lift.head import (
    CosineHead,
    HeadName,
    L2Head,
    LayerNormHead,
    LinearHead,
    PlainHead,
    new_head,
    text_weight,
)

NAMES: list[HeadName] = ["cosine", "linear", "l2", "layernorm"]


def test_logits_are_scaled_cosines() -> None:
    head = CosineHead(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), scale=25.0)
    logits, unit = head(torch.tensor([[3.0, 4.0]]))
    assert torch.allclose(logits, torch.tensor([[15.0, 20.0]]))
    assert torch.allclose(unit, torch.tensor([[0.6, 0.8]]))


def test_other_heads_normalise_what_their_names_say() -> None:
    weight = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    features = torch.tensor([[3.0, 7.0]])
    linear = LinearHead(weight)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([1.0, -1.0]))
    assert torch.allclose(linear(features)[0], torch.tensor([[7.0, 34.0]]))
    assert torch.allclose(L2Head(weight)(features)[0], features)
    assert torch.allclose(LayerNormHead(weight)(features)[0], torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(1, 100),
    projected=st.booleans(),
    shifted=st.booleans(),
)
def test_a_merged_head_is_plain_and_gives_the_same(
    name: HeadName, seed: int, scale: float, projected: bool, shifted: bool
) -> None:
    torch.manual_seed(seed)
    projection = torch.randn(8, 6) if projected else None
    bias = torch.randn(6) if projected and shifted else None
    head = new_head(name, torch.randn(5, 6 if projected else 8), scale, projection, bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    merged, features = head.merged(), torch.randn(3, 8)
    assert type(merged) is PlainHead
    for ours, theirs in zip(merged(features), head(features), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    assert merged(features)[1].norm(dim=-1) == pytest.approx(torch.ones(3))


@pytest.mark.parametrize(
    ("name", "parameters"), [("cosine", 40), ("linear", 45), ("l2", 40), ("layernorm", 40)]
)
def test_a_head_trains_its_weight_and_only_the_linear_one_a_bias(
    name: HeadName, parameters: int
) -> None:
    head = new_head(name, torch.randn(5, 8), 25.0, torch.randn(9, 8), torch.randn(8))
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@given(seed=st.integers(0, 1000))
def test_mean_cosine_logits_are_the_logits_of_the_mean_unit_feature(seed: int) -> None:
    """LIFT averages the logits of several views; averaging unit features gives the same."""
    torch.manual_seed(seed)
    head = CosineHead(torch.randn(5, 6), 25.0, torch.randn(8, 6), torch.randn(6)).merged()
    with torch.no_grad():
        logits, unit = head(torch.randn(5, 8))
        assert torch.allclose(logits.mean(0), F.linear(unit.mean(0), head.weight), atol=1e-4)


@pytest.mark.parametrize("shift", [None, torch.randn(6)], ids=["matrix", "with-bias"])
def test_a_projected_head_on_text_weights_is_zero_shot_clip(shift: torch.Tensor | None) -> None:
    text, layer = F.normalize(torch.randn(5, 6), dim=-1), torch.nn.Linear(8, 6)
    layer.bias.data = torch.zeros(6) if shift is None else shift
    features = torch.randn(3, 8)
    logits, unit = CosineHead(text, 100.0, layer.weight.t(), shift)(features)
    embedded = F.normalize(layer(features), dim=-1)
    assert torch.allclose(logits, 100 * embedded @ text.t(), atol=1e-4)
    assert torch.allclose(unit, embedded, atol=1e-6)


def test_text_weights_are_pulled_back_through_the_projection() -> None:
    text, projection = torch.randn(5, 6), torch.randn(8, 6)
    weight = text_weight(text, projection)
    assert weight.shape == (5, 8)
    assert torch.allclose(weight.norm(dim=-1), torch.ones(5))
    cosine = F.cosine_similarity(weight, text @ projection.t())
    assert torch.allclose(cosine, torch.ones(5))
    assert torch.allclose(text_weight(text, None), F.normalize(text, dim=-1))
