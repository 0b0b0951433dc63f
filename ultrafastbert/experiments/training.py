"""One training: a network is trained until neither training nor validation accuracy improves.

Notable:
- A single training yields both accuracies of the paper. Early stopping by one of them only decides when a training
  ends, so a training that continues until both have stopped passes through both.
- All accuracies are those of inference, where trees take hard decisions.
- The epochs to train are the epoch after which the accuracy was first reached.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ultrafastbert.experiments.arguments import LayerTrainingArguments
from ultrafastbert.experiments.images import Part
from ultrafastbert.layers.blocks import BlockLayer
from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.layers.usage import LeafCounter, tree_layers


def train_classifier(
    model: nn.Module,
    data: dict[str, Part],
    arguments: LayerTrainingArguments,
    seed: int,
    augment: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
    check: Callable[[], None] = lambda: None,
) -> dict:
    """Trains `model` in place.

    Args:
        model: images `(images, channels, height, width)` -> logits `(images, classes)`. The loss is the cross-entropy
            plus the `auxiliary_loss` of every `BlockLayer`.
        data: from `images.split_images`, on the device of `model`.
        arguments: optimiser, batch size and when to stop.
        seed: determines the order of images.
        augment: applied to the images of each step.
        check: called after every step; an exception that it raises ends the training.

    Returns:
        `memorisation` and `validation`: the best training and validation accuracy, as fractions; `generalisation`: the
        test accuracy of the weights with the best validation accuracy; `memorisation_epoch` and
        `generalisation_epoch`: the epochs, counted from 1, that first reached the best training and validation
        accuracy; `leaves_used`: for each tree, the number of leaves that training images reach with those weights;
        `epochs` trained; `history`: values by epoch of `loss`, `train`, `validation` and, if there are trees,
        `entropy`: for each tree the mean, least and greatest over its nodes of the batch-mean entropy of decisions, in
        nats. After a loss that is not finite, only `diverged`, which says when, and `history`.
    """
    order = torch.Generator().manual_seed(seed)
    optimizer_class = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[arguments.optimizer]
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], lr=arguments.lr)
    tolerated = (arguments.plateau or arguments.epochs) - 1  # epochs without improvement that do not halve the rate
    halving = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience=tolerated, threshold=0)
    trees = [tree for tree in tree_layers(model) if isinstance(tree, SoftFFF)]
    history: dict[str, list] = {"loss": [], "train": [], "validation": []} | ({"entropy": []} if trees else {})
    best, best_epoch = {"train": -1.0, "validation": -1.0}, {"train": 0, "validation": 0}
    weights: dict[str, torch.Tensor] = {}
    for epoch in range(1, arguments.epochs + 1):
        batches = torch.randperm(len(data["train"][0]), generator=order).split(arguments.batch_size)
        loss, entropy = _train_epoch(model, trees, data["train"], batches, optimizer, augment, check)
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
        if epoch - max(best_epoch.values()) >= arguments.patience:
            break
        halving.step(history[arguments.plateau_of][-1])
    model.load_state_dict(weights)
    with LeafCounter(model) as leaves:
        accuracy(model, data["train"])
    return {
        "memorisation": best["train"],
        "memorisation_epoch": best_epoch["train"],
        "validation": best["validation"],
        "generalisation": accuracy(model, data["test"]),
        "generalisation_epoch": best_epoch["validation"],
        "leaves_used": [int(counts.count_nonzero()) for counts in leaves.counts],
        "epochs": len(history["loss"]),
        "history": history,
    }


def _train_epoch(
    model: nn.Module,
    trees: list[SoftFFF],
    part: Part,
    batches: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    augment: Callable[[torch.Tensor], torch.Tensor],
    check: Callable[[], None],
) -> tuple[float, list[list[float]]]:
    """Returns the mean loss, and for each tree the mean, least and greatest entropy of its nodes."""
    model.train()
    images, classes = part
    total = 0.0
    entropies = [torch.zeros(2**tree.depth - 1, device=images.device) for tree in trees]
    for batch in (batch.to(images.device) for batch in batches):
        logits = model(augment(images[batch]))
        loss = nn.functional.cross_entropy(logits, classes[batch])
        loss = loss + sum(module.auxiliary_loss for module in model.modules() if isinstance(module, BlockLayer))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        for entropy, tree in zip(entropies, trees, strict=True):
            entropy += tree.node_entropy.detach() * len(batch) / len(images)
        check()
    ranges = [[e.mean().item(), e.min().item(), e.max().item()] for e in entropies]
    return total / len(images), [[round(value, 5) for value in values] for values in ranges]


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """The fraction of images whose class has the greatest logit, in evaluation mode."""
    model.eval()
    images, classes = part
    batches = zip(images.split(4096), classes.split(4096), strict=True)
    hits = [model(x).argmax(dim=-1).eq(y).sum() for x, y in batches]
    return torch.stack(hits).sum().item() / len(images)


def augment_images(images: torch.Tensor) -> torch.Tensor:
    """Augments images at random: flips, rotation by up to 15 degrees, shift and scale by up to 10%.

    Pixels from outside an image are 0. The paper names these kinds of augmentation but not their amounts.

    Shapes: `(images, channels, height, width)` -> the same.
    """
    count, device, dtype = len(images), images.device, images.dtype
    angle = math.radians(15) * (2 * torch.rand(count, device=device, dtype=dtype) - 1)
    scale = 1 + 0.1 * (2 * torch.rand(count, device=device, dtype=dtype) - 1)
    flips = torch.randint(0, 2, (count, 2), device=device) * 2 - 1
    shift = 0.2 * (2 * torch.rand(count, 2, device=device, dtype=dtype) - 1)  # coordinates are from -1 to 1
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(count, 2, 2)
    matrix = rotation * flips[:, None, :] / scale[:, None, None]
    affine = torch.cat([matrix, shift[..., None]], dim=-1)
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)
