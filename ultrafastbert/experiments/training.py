"""One run: a network trained until neither training nor validation accuracy improves.

Notable:
- a single training yields both of the paper's accuracies: early stopping by one of them only decides where a training
  ends, so a run that goes on until both have ended passes through both;
- all accuracies are those of inference, where a tree takes hard decisions;
- the epochs to train are the epoch after which the accuracy was first seen.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from ultrafastbert.experiments.arguments import Recipe
from ultrafastbert.experiments.images import Part
from ultrafastbert.layers.usage import LeafCounter, tree_layers

ROWS_A_PASS = 4096
"""Images evaluated at a time."""


def train(
    model: nn.Module,
    data: dict[str, Part],
    recipe: Recipe,
    seed: int,
    augment: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
    check: Callable[[], None] = lambda: None,
) -> dict:
    """Trains `model` in place.

    Args:
        model: images `(rows, channels, height, width)` -> logits `(rows, classes)`. To the cross-entropy comes the
            `auxiliary_loss` of every module that has one.
        data: from `data.split_images`, where `model` is.
        recipe: optimiser, batches and when to stop.
        seed: of the order of images.
        augment: applied to the images of a step.
        check: called after every step; what it raises ends the run.

    Returns:
        `memorisation`, `validation` and `generalisation`: best accuracy on training and on validation rows, and the
        accuracy on test rows of the weights that were best on validation rows, as shares; `memorisation_epoch` and
        `generalisation_epoch`, counted from 1, at which they were first seen; `leaves_used`, for every tree the number
        of leaves that training rows reach with those weights; `epochs` trained; `history`, a list of
        values by epoch for `loss`, `train`, `validation` and, if there are trees, `entropy`: for every tree the mean,
        least and greatest over its nodes of the batch-mean entropy of decisions, in nats. Instead, after a loss that
        is not finite: `diverged`, which says when, and `history`.
    """
    order = torch.Generator().manual_seed(seed)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer]
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=recipe.lr)
    plateau = (recipe.plateau or recipe.epochs) - 1  # PyTorch's patience is what is tolerated
    halving = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=plateau, threshold=0
    )
    trees = tree_layers(model)
    history = {"loss": [], "train": [], "validation": []} | ({"entropy": []} if trees else {})
    best, best_epoch, weights = {"train": -1.0, "validation": -1.0}, {}, {}
    for epoch in range(1, recipe.epochs + 1):
        loss, entropy = _train_epoch(model, trees, data["train"], optimizer, recipe.batch_size, order, augment, check)
        if not math.isfinite(loss):
            return {"diverged": f"the loss of epoch {epoch} is {loss}", "history": history}
        history["loss"].append(round(loss, 6))
        if trees:
            history["entropy"].append(entropy)
        for part in best:
            score = accuracy(model, data[part])
            history[part].append(round(score, 6))
            if score > best[part]:
                best[part], best_epoch[part] = score, epoch
                if part == "validation":
                    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if epoch - max(best_epoch.values()) >= recipe.patience:
            break
        halving.step(history[recipe.plateau_of][-1])
    model.load_state_dict(weights)
    return {
        "memorisation": best["train"],
        "memorisation_epoch": best_epoch["train"],
        "validation": best["validation"],
        "generalisation": accuracy(model, data["test"]),
        "generalisation_epoch": best_epoch["validation"],
        "leaves_used": _count_leaves(model, data["train"]),
        "epochs": epoch,
        "history": history,
    }


def _train_epoch(model, trees, part, optimizer, batch_size, order, augment, check):
    """The mean loss of the epoch's images, and for each tree mean, least and greatest entropy of its nodes."""
    model.train()
    images, classes = part
    total, steps = 0.0, torch.randperm(len(images), generator=order).to(images.device).split(batch_size)
    entropies = [torch.zeros(2**tree.depth - 1, device=images.device) for tree in trees]
    for rows in steps:
        logits = model(augment(images[rows]))
        loss = nn.functional.cross_entropy(logits, classes[rows])
        loss = loss + sum(m.auxiliary_loss for m in model.modules() if hasattr(m, "auxiliary_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
        for entropy, tree in zip(entropies, trees, strict=True):
            entropy += tree.node_entropy.detach() * len(rows) / len(images)
        check()
    ranges = [[e.mean().item(), e.min().item(), e.max().item()] for e in entropies]
    return total / len(images), [[round(value, 5) for value in values] for values in ranges]


def _count_leaves(model: nn.Module, part: Part) -> list[int]:
    """For each tree of the model, how many leaves are reached."""
    with LeafCounter(model) as leaves:
        accuracy(model, part)
    return [int(counts.count_nonzero()) for counts in leaves.counts]


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """The share of images whose class gets the greatest logit, in evaluation mode."""
    model.eval()
    images, classes = part
    hits = [
        model(x).argmax(dim=-1).eq(y).sum()
        for x, y in zip(images.split(ROWS_A_PASS), classes.split(ROWS_A_PASS), strict=True)
    ]
    return torch.stack(hits).sum().item() / len(images)


def augment_images(images: torch.Tensor) -> torch.Tensor:
    """Flips each image at random in either direction, turns it by up to 15 degrees, shifts it by up to a tenth of its
    side and scales it by 0.9 to 1.1; what comes from outside is 0. The paper names the kinds but not the amounts.

    Shapes: `(rows, channels, height, width)`, as it came.
    """
    rows, like = len(images), {"device": images.device, "dtype": images.dtype}
    angle = math.radians(15) * (2 * torch.rand(rows, **like) - 1)
    scale = 1 + 0.1 * (2 * torch.rand(rows, **like) - 1)
    flips = torch.randint(0, 2, (rows, 2), device=images.device) * 2 - 1
    shift = 0.2 * (2 * torch.rand(rows, 2, **like) - 1)  # coordinates go from -1 to 1
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(rows, 2, 2)
    matrix = rotation * flips[:, None, :] / scale[:, None, None]
    grid = nn.functional.affine_grid(torch.cat([matrix, shift[..., None]], dim=-1), images.shape, align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)
