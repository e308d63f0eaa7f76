import torch
import torch.nn.functional as F

from training.loss import LogitAdjusted

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1])


def test_with_equal_counts_it_is_cross_entropy() -> None:
    assert torch.allclose(
        LogitAdjusted([4, 4, 4], 1)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS)
    )


def test_it_adds_tau_log_prior_to_the_logits() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1])
    expected = F.cross_entropy(LOGITS + 2 * prior.log(), LABELS)
    assert torch.allclose(LogitAdjusted([70, 20, 10], tau=2)(LOGITS, LABELS), expected)


def test_a_wrong_answer_on_a_rare_class_costs_more() -> None:
    loss = LogitAdjusted([100, 1], 1)
    undecided = torch.zeros(1, 2)
    assert loss(undecided, torch.tensor([1])) > loss(undecided, torch.tensor([0])) + 4
