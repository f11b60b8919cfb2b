"""Top-1, top-5 and loss over a set of images: sums and counts, divided once."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnet.batch import autocast, to_device
from octnet.data import val_batches
from octnet.options import Config
from octnet.processes import Processes
from octnet.readers import Images


def evaluate_images(model: nn.Module, images: Images, config: Config, processes: Processes) -> dict[str, float]:
    """Top-1 and top-5 in percent, and the loss, over each image once, whatever the number of processes."""
    processes.share_buffers(model)
    batch_size = max(1, config.recipe.batch_size // (processes.world * config.recipe.accumulation_steps))
    batches = val_batches(images, config.data, batch_size, processes.rank, processes.world)
    totals = processes.sum(evaluate(model, batches, config, processes.device))
    loss, top1, top5, count = totals.tolist()
    return {"val_loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: Config, device: torch.device
) -> Tensor:
    """Sums over the images, float64 (4,): loss, correct at 1, correct among 5 (or all, of fewer classes), images."""
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        images, labels = to_device(batch, config, device)
        with autocast(config.recipe, device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
        totals += torch.stack([loss, best[:, 0].sum(), best.sum(), torch.full_like(loss, len(labels))])
    return totals
