"""Adds unlabelled photos to each training step: pseudo-labels, and the loss that teaches them.

A step guesses the class of weak views, accepts some of the guesses, and trains on strong views of
the same photos. Every process has a part of each batch; sums over all processes keep them alike.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, split

from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from taillift.models.lift.head import FusedHead, Head
from taillift.models.lift.model import Model
from taillift.training.fit.distributed import Processes
from taillift.training.fit.inputs import Batch, Inputs, first_copies, sharded
from taillift.training.fit.optimisation import GradientAccumulator, ema_decay
from taillift.training.fit.provenance import PseudoLabelEpoch
from taillift.training.recipe.losses import Criterion
from taillift.training.recipe.recipe import Recipe
from taillift.training.recipe.semi_supervision import (
    FineSsl,
    FreeMatch,
    Loft,
    SemiSupervision,
    SureGuesses,
    UlFine,
)
from taillift.training.unlabelled.acceptance import (
    Averages,
    PseudoLabelTally,
    SetAcceptance,
    guess_sums,
    tally_counts,
)
from taillift.training.unlabelled.weak_strong import unlabelled_picks

# Decay of the moving averages of accepted pseudo-labels, smaller in the first steps.
DECAY: Final = 0.99
# FreeMatch adds it before a logarithm.
TINY: Final = 1e-12

# A batch's number of photos, and this process's part of it.
PoolBatch = tuple[int, Batch | None]


class Teacher:
    """The pseudo-labels of one run. This class is FixMatch and LoFT; others change parts of it.

    The prior (ours): with pseudo-labels, a class is seen more often than its labelled photos are.
    So the loss of labelled and unlabelled photos alike is built for joint counts: the labelled
    photos, and the accepted pseudo-labels in the proportion in which the loss weighs them, n_c +
    weight N a_c with N labelled photos and the moving average a_c of the accepted share. Guesses
    are made under the uniform prior, whatever prior the loss leaves in the logits.
    """

    def __init__(
        self,
        method: SemiSupervision,
        model: Model,
        pool: Inputs,
        recipe: Recipe,
        counts: Sequence[int],
        groups: Sequence[Group],
        processes: Processes,
        held_out: Inputs | None = None,
    ) -> None:
        """Teach photos from `pool`, whose rows are a weak and a strong view of each.

        `counts` are the labelled photos and `groups` the groups of the classes. `held_out` has the
        centre views of val/, if the method asks for evidence from them.
        """
        self.size = method.ratio * recipe.batch
        self.method = method
        self.recipe = recipe
        self.counts = torch.tensor(counts, dtype=torch.float64)
        self.groups = groups
        self.processes = processes
        self.pool = pool
        self.held_out = held_out
        self.sets: SetAcceptance | None = None
        if isinstance(method, SureGuesses) and method.evidence and held_out is not None:
            self.sets = SetAcceptance(method.evidence, held_out.labels, groups)
        self.head: Head = model.head
        self.averages = Averages(len(counts))
        self.tally = PseudoLabelTally(len(counts))
        self.history: list[PseudoLabelEpoch] = []
        # This process's part of the batch: the weak views' features, or None without a photo; and
        # the pseudo-labels: guesses, weights and, for soft labels, probabilities and their weights.
        self.features: Tensor | None = None
        self.labels, self.weights = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        self.probabilities, self.soft = torch.zeros(0, len(counts)), torch.zeros(0)
        self.criterion: Criterion = recipe.loss.build(counts)

    def prepare(self, model: Model, fabric: Fabric, micro: int) -> None:
        """Begin to teach `model`, which is on its device now, `micro` photos at a time."""
        self.gradients = GradientAccumulator(model, self.pool.stage, fabric, micro)
        self.model, self.fabric, self.micro = model, fabric, micro

    @property
    def joint_counts(self) -> list[float]:
        """Each class's count in the loss: its labelled photos, and its pseudo-labels."""
        return (self.counts + self.pseudo_counts).tolist()

    @property
    def pseudo_counts(self) -> Tensor:
        """Each class's accepted pseudo-labels [C], counted in labelled photos."""
        return self.method.weight * self.counts.sum() * self.averages.accepted

    def batches(self, done: int, steps: int) -> Iterator[PoolBatch]:
        """Yield the unlabelled batches of the next `steps` steps, after those that are `done`."""
        photos = len(self.pool.labels)
        picks = [
            unlabelled_picks(photos, self.size, step, self.recipe.seed)
            for step in range(done, done + steps)
        ]
        return sharded(self.pool, picks, self.processes)

    @torch.no_grad()
    def begin_epoch(self) -> None:
        """Look at the held-out photos with the model as it is now. Collective."""
        if self.sets is None or self.held_out is None:
            return
        order = first_copies(len(self.held_out.labels))
        own = self.processes.shard(order)
        probabilities = torch.zeros(len(order), len(self.counts))
        network = GradientAccumulator(self.model, self.held_out.stage, self.fabric, self.micro)
        places = iter(own)
        for rows, _ in self.held_out.batches(own, self.micro):
            part = self.uniform_probabilities(network.features(rows)).cpu()
            photos = [photo for photo, _ in islice(places, len(part))]
            probabilities[photos] = part
        self.sets.update(self.processes.all_reduce(probabilities))

    @property
    def log_prior(self) -> Tensor:
        """The logarithms float64 [C] of the prior that the loss leaves in the logits."""
        return self.recipe.loss.implied_prior(self.joint_counts).log()

    def uniform_probabilities(self, features: Tensor) -> Tensor:
        """Return the probabilities float32 [N, C] under the uniform prior, of features [N, D]."""
        logits: Tensor = self.head(features)[0]
        return (logits - self.log_prior.to(logits.device)).softmax(1).float()

    @torch.no_grad()
    def guess(self, batch: PoolBatch, step: int) -> None:
        """Make the pseudo-labels of a batch, count them, and build the loss. Collective."""
        size, shard = batch
        device, classes = self.processes.device, len(self.counts)
        probabilities, truth = torch.zeros(0, classes, device=device), torch.zeros(0).long()
        features = None
        if shard is not None:
            rows, truth = shard
            features = self.gradients.features(rows[::2])
            probabilities = self.uniform_probabilities(features)
        sums = self.processes.all_reduce(guess_sums(probabilities))
        self.averages.follow_guesses(sums, size, self.decay(step))
        counted = self.choose(probabilities, features)
        soft = self.soft.cpu() > 0
        tally = tally_counts(self.labels.cpu(), counted.cpu(), soft, truth, classes)
        self.tally.add(self.processes.all_reduce(tally))
        weights = torch.zeros(2, classes, dtype=torch.float64)
        weights[0].index_add_(0, self.labels.cpu(), self.weights.double().cpu())
        weights[1].index_add_(0, self.labels.cpu(), counted.double().cpu())
        accepted, numbers = self.processes.all_reduce(weights)
        self.averages.follow_accepted(accepted, numbers, size, ema_decay(DECAY, step))
        self.criterion = self.recipe.loss.build(self.joint_counts).to(device)

    def choose(self, probabilities: Tensor, features: Tensor | None) -> Tensor:
        """Make the pseudo-labels of guesses; return bool [N]: which of them count as accepted.

        `probabilities` are [N, C] under the uniform prior, `features` the weak views' [N, D], or
        None without a photo.
        """
        self.probabilities, self.labels = probabilities, probabilities.argmax(1)
        self.features = features
        self.weights, accepted = self.accept(probabilities)
        self.soft = self.accept_softly(probabilities, accepted)
        return accepted

    def decay(self, step: int) -> float:
        """Return the decay of the averages of guesses in `step`."""
        return ema_decay(DECAY, step)

    def accept(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return each guess's weight float32 [N], and bool [N]: whether it counts as accepted."""
        if self.sets is not None:
            weights = self.sets.weights(probabilities)
            return weights, weights > 0
        assert isinstance(self.method, SureGuesses)
        accepted = probabilities.amax(1) >= self.method.threshold
        return accepted.float(), accepted

    def accept_softly(self, probabilities: Tensor, accepted: Tensor) -> Tensor:
        """Return the weight float32 [N] of each photo's soft label; `accepted` have a hard one.

        It is LoFT's (equations 8, 10 and 11): 1 for photos that are not sure enough for a hard
        label and, with the gate of the open world, sure enough not to be foreign.
        """
        if not isinstance(self.method, Loft) or not self.method.soft_weight:
            return torch.zeros_like(self.weights)
        soft = (~accepted).float()
        if self.method.foreign is not None:
            soft = soft * (probabilities.amax(1) > self.method.foreign)
        return soft * self.method.soft_weight

    def labelled_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the losses [N] of labelled photos, from features [N, D] and labels int64 [N]."""
        losses: Tensor = self.criterion(self.head(features)[0], labels)
        return losses

    def strong_loss(self, features: Tensor, photos: Tensor) -> Tensor:
        """Return the losses [N] of strong views, from features [N, D].

        `photos` int64 [N] are their places in this process's part of the batch. A photo without a
        label has a loss of 0; the batch's loss is the mean over all photos.
        """
        logits: Tensor = self.head(features)[0]
        losses: Tensor = self.criterion(logits, self.labels[photos])
        losses = self.method.weight * self.weights[photos] * losses
        if (soft := self.soft[photos]).any():
            # The target has the uniform prior. Under the logits' own it would be another.
            guesses = (logits - self.log_prior.to(logits)).log_softmax(1)
            losses = losses - soft * (self.probabilities[photos] * guesses).sum(1)
        return losses

    def teach(self, batch: PoolBatch) -> Tensor:
        """Add the gradients of the strong views; return this process's part of their mean loss."""
        size, shard = batch
        photos = torch.nonzero((self.weights > 0) | (self.soft > 0)).flatten().cpu()
        if shard is None or not len(photos):
            return self.gradients.add(None, size, self.strong_loss)
        # The other photos have no loss, so their strong views are not looked at.
        strong = shard[0][1::2][photos]
        return self.gradients.add((strong, photos), size, self.strong_loss)

    def finish_step(self) -> None:
        """Change what no gradient changes, after the weights have changed. Collective."""

    def finish_epoch(self) -> None:
        """Put the epoch's pseudo-labels on record."""
        self.history.append(self.tally.epoch(self.groups))
        self.tally.clear()

    def finish(self) -> None:
        """Remove what is not a part of the trained model."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that another process needs to continue exactly from here."""
        return {
            "averages": self.averages.state_dict(),
            "tally": [self.tally.by_class, self.tally.totals],
            "history": [epoch.model_dump() for epoch in self.history],
            "held_out": self.sets.probabilities if self.sets else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.averages.load_state_dict(state["averages"])
        if self.sets:
            self.sets.update(state["held_out"])
        self.tally.by_class, self.tally.totals = state["tally"]
        self.history = [PseudoLabelEpoch.model_validate(epoch) for epoch in state["history"]]


class FreeMatchTeacher(Teacher):
    """FreeMatch: thresholds that follow the model, and a term that rewards spread over classes."""

    def __init__(self, method: FreeMatch, *args: Any) -> None:
        super().__init__(method, *args)
        self.options = method
        self.fairness, self.slope = 0.0, torch.zeros(len(self.counts))

    def decay(self, step: int) -> float:
        return ema_decay(self.options.decay, step)

    def accept(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        thresholds = self.averages.thresholds.to(probabilities)[probabilities.argmax(1)]
        accepted = probabilities.amax(1) >= thresholds
        return accepted.float(), accepted

    def guess(self, batch: PoolBatch, step: int) -> None:
        """As for any teacher; also computes the fairness term's slope for the whole batch."""
        super().guess(batch, step)
        if not self.options.fairness:
            return
        # The term is a function of means over the batch, which is trained in parts. So the means
        # come first, and each part gets the term's gradient with respect to them.
        classes = len(self.counts)
        sums, (_, shard) = torch.zeros(2 * classes + 1, dtype=torch.float64), batch
        if shard is not None:
            kept = self.weights.cpu() > 0
            if kept.any():
                with torch.no_grad():
                    logits = self.head(self.gradients.features(shard[0][1::2][kept]))[0]
                sums[1:] = guess_sums(logits.softmax(1))[1:]
                sums[0] = kept.sum()
        self.prepare_fairness(self.processes.all_reduce(sums), batch[0])

    def prepare_fairness(self, sums: Tensor, size: int) -> None:
        """Compute the fairness term of a batch of `size` photos and its slope.

        `sums` float64 [1 + 2 C] are the number of kept photos, and the sums of the probabilities
        and of the guesses on their strong views.
        """
        classes = len(self.counts)
        number, means, guesses = split(sums, [1, classes, classes])
        self.fairness, self.slope = 0.0, torch.zeros(classes, device=self.processes.device)
        if not number:
            return
        averages = self.averages
        mean = (means / number).requires_grad_()
        with torch.enable_grad():
            term = fairness_term(averages.marginal, averages.guessed, mean, guesses / number)
            (slope,) = torch.autograd.grad(term, mean)
        # The batch's loss is a mean over all its photos, and the term one over those that are kept.
        share = size / number.item()
        self.fairness = share * term.item()
        self.slope = (share * slope).float().to(self.processes.device)

    def strong_loss(self, features: Tensor, photos: Tensor) -> Tensor:
        losses = super().strong_loss(features, photos)
        if not self.options.fairness:
            return losses
        part: Tensor = self.head(features)[0].softmax(1) @ self.slope
        term = part - part.detach() + self.fairness
        return losses + self.options.fairness * (self.weights[photos] > 0) * term


def fairness_term(marginal: Tensor, guessed: Tensor, mean: Tensor, histogram: Tensor) -> Tensor:
    """Return FreeMatch's fairness term, a scalar: sum over classes of N(p/h) log N(q/g).

    `marginal` p and `guessed` h are the averages of guesses on weak views, `mean` q the mean
    probability and `histogram` g the shares of the guesses on kept strong views, all float64 [C].
    N divides by the sum, and a class with h or g of 0 counts as 0 (the authors' code).
    """
    target = torch.where(guessed > 0, marginal / guessed.clamp_min(TINY), 0)
    actual = torch.where(histogram > 0, mean / histogram.clamp_min(TINY), 0)
    return (target / target.sum() * (actual / actual.sum() + TINY).log()).sum()


class FineSslTeacher(Teacher):
    """FineSSL: margins by the counts of pseudo-labels, weights by a second head's confidence.

    The pseudo-label is the guess of the first head, and a moving average counts the pseudo-labels
    (both ours). No photo is masked; the threshold says which pseudo-labels count for the margins.
    """

    def __init__(self, method: FineSsl, model: Model, *args: Any) -> None:
        super().__init__(method, model, *args)
        self.options = method
        self.second = copy.deepcopy(model.head)
        # As a part of the head, it is trained, averaged and saved with it.
        model.head.add_module("second", self.second)

    def accept(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        if self.features is None:
            return probabilities.amax(1), probabilities.amax(1) > 1
        confidence = self.second(self.features)[0].softmax(1).amax(1).float()
        return confidence, confidence >= self.options.threshold

    @property
    def margins(self) -> Tensor:
        """The margin of each class, float64 [C]: most for those with few pseudo-labels.

        m (1 - s) / (1 + s) (max s - min s), with s a class's count over the largest.
        """
        counted = self.averages.counted
        share = counted / counted.max().clamp_min(TINY)
        return self.options.margin * (1 - share) / (1 + share) * (share.max() - share.min())

    def labelled_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.head(features)[0]
        margin = self.margins.to(logits)[labels][:, None]
        wrong = labels[:, None] != torch.arange(len(self.counts), device=logits.device)
        first: Tensor = self.criterion(logits + margin * wrong, labels)
        second = self.second(features.detach())[0]
        return first + F.cross_entropy(second, labels, reduction="none")

    def strong_loss(self, features: Tensor, photos: Tensor) -> Tensor:
        second = self.second(features.detach())[0]
        smoothed = F.cross_entropy(
            second,
            self.labels[photos],
            reduction="none",
            label_smoothing=self.options.smoothing,
        )
        return super().strong_loss(features, photos) + smoothed

    def finish(self) -> None:
        del self.head.second


class UlFineTeacher(Teacher):
    """ULFine: prototypes that move from texts toward images, fused with the trained weights.

    After each step a prototype moves by `move` P_k / max P toward the moving mean of its labelled
    features, with the model's mean probability P of the class on unlabelled photos. All vectors
    are centred over the classes first (ours), as texts and images lie in different cones. The
    alignment is the ratio of the two logits' mean standard deviations over the classes, a moving
    average (ours): a ratio for each photo would leave no single head to export.
    """

    def __init__(self, method: UlFine, model: Model, *args: Any) -> None:
        super().__init__(method, model, *args)
        assert isinstance(model.head, FusedHead)
        self.options, self.fused = method, model.head
        self.means = torch.zeros_like(self.fused.prototypes)
        self.sums = torch.zeros_like(self.means)
        self.numbers = torch.zeros(len(self.means))
        self.seen = torch.zeros(len(self.means), dtype=torch.bool)

    def start(self, texts: Tensor) -> None:
        """Start the prototypes from class texts [C, D or E]."""
        with torch.no_grad():
            self.fused.prototypes.copy_(centred(texts))

    def guess(self, batch: PoolBatch, step: int) -> None:
        self.means = self.means.to(self.processes.device)
        self.sums = torch.zeros_like(self.means)
        self.numbers = torch.zeros(len(self.means), device=self.sums.device)
        super().guess(batch, step)

    @torch.no_grad()
    def accept(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        spreads = torch.zeros(2, dtype=torch.float64)
        if self.features is not None:
            unit = self.fused(self.features)[1]
            parts = [F.linear(unit, weight).std(1).double().sum() for weight in self.fused.parts()]
            spreads = torch.stack(parts).cpu()
        trained, prototypes = self.processes.all_reduce(spreads).tolist()
        ratio = torch.tensor(trained / max(prototypes, TINY)).to(self.fused.alignment)
        first = not self.seen.any()
        self.fused.alignment.lerp_(ratio, 1.0 if first else 1 - self.options.momentum)
        return super().accept(probabilities)

    def labelled_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        self.sums.index_add_(0, labels, self.fused(features)[1].detach())
        self.numbers.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float))
        return super().labelled_loss(features, labels)

    @torch.no_grad()
    def finish_step(self) -> None:
        width = self.sums.shape[1]
        both = torch.cat([self.sums, self.numbers[:, None]], 1)
        sums, numbers = split(self.processes.all_reduce(both), [width, 1], 1)
        means, present = sums / numbers.clamp_min(1), numbers[:, 0] > 0
        new = present & ~self.seen.to(present.device)
        self.means[new] = means[new]
        self.means[present] = self.means[present].lerp(means[present], 1 - self.options.momentum)
        self.seen |= present.cpu()

        marginal = self.averages.marginal / self.averages.marginal.max()
        move = self.options.move * marginal[:, None].to(self.means)
        prototypes, seen = self.fused.prototypes, self.seen.to(self.means.device)
        toward = prototypes.clone()
        if seen.sum() > 1:
            toward[seen] = centred(self.means[seen])
        moved = F.normalize(prototypes + move * (toward - prototypes), dim=-1)
        prototypes.copy_(repelled(moved, self.options.orthogonality))

    def state_dict(self) -> dict[str, Any]:
        own = {
            "prototypes": self.fused.prototypes.detach(),
            "alignment": self.fused.alignment.detach(),
            "means": self.means,
            "seen": self.seen,
        }
        return {**super().state_dict(), **own}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fused.prototypes.copy_(state["prototypes"])
        self.fused.alignment.copy_(state["alignment"])
        self.means, self.seen = state["means"], state["seen"]


def centred(vectors: Tensor) -> Tensor:
    """Return vectors [C, D] without their mean, scaled to length 1."""
    unit = F.normalize(vectors, dim=-1)
    return F.normalize(unit - unit.mean(0), dim=-1)


def repelled(prototypes: Tensor, strength: float) -> Tensor:
    """Return unit prototypes [C, D] after a step that makes their squared cosines smaller.

    It is a step down the gradient of the mean squared cosine of each with the others (ours: the
    form of ULFine's orthogonality term could not be read).
    """
    cosines = prototypes @ prototypes.t()
    cosines.fill_diagonal_(0)
    others = max(1, len(prototypes) - 1)
    return F.normalize(prototypes - strength * cosines @ prototypes / others, dim=-1)


def check_pool(photos: int, batch: int, ratio: int) -> None:
    """Raise `UserError` if there are fewer unlabelled photos than one step takes."""
    if photos < batch * ratio:
        most = photos // batch
        advice = f"set unlabelled.ratio={most}" if most else f"set batch={photos}"
        raise UserError(
            f"a step takes {batch * ratio:,} unlabelled photos and there are {photos:,}: {advice} "
            "or less, or add photos"
        )


def new_teacher(
    method: SemiSupervision,
    model: Model,
    pool: Inputs,
    recipe: Recipe,
    counts: Sequence[int],
    groups: Sequence[Group],
    processes: Processes,
    held_out: Inputs | None = None,
) -> Teacher:
    """Return the teacher of a method; `held_out` are the centre views of val/, if it needs any."""
    rest = model, pool, recipe, counts, groups, processes, held_out
    match method:
        case FreeMatch():
            return FreeMatchTeacher(method, *rest)
        case FineSsl():
            return FineSslTeacher(method, *rest)
        case UlFine():
            return UlFineTeacher(method, *rest)
    return Teacher(method, *rest)
