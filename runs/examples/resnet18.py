"""ResNet-18 on Fashion-MNIST, a training program for one process or for several under mpirun.

    python runs/examples/resnet18.py
    mpirun -n 2 python runs/examples/resnet18.py --method dls --density 0.01

The lines that dls.torch adds to an ordinary PyTorch program are marked.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dls.torch  # dls
from dls.tasks import data


class Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.around = nn.Sequential()
        if stride > 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride, bias=False)
            self.around = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [N, before, H, W]."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.around(x))


def resnet18(channels: int, classes: int, width: int) -> nn.Module:
    """The network for small images: its first convolution keeps their size. width: 64 in the
    paper (K. He et al., Deep residual learning, 2016).
    """
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    modules = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        after = width * 2**stage
        modules += [Block(before, after, 2 if stage else 1), Block(after, after, 1)]
        before = after
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return nn.Sequential(*modules, *head)


def augmented(x: torch.Tensor, mirror: bool) -> torch.Tensor:
    """The images, shifted by up to two pixels and half of the time mirrored, all alike."""
    right, down = torch.randint(-2, 3, (2,)).tolist()
    x = torch.roll(x, (down, right), (2, 3))
    return x.flip(3) if mirror and torch.rand(()) < 0.5 else x


def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, cast: torch.autocast
) -> float:
    """The share of images whose class the model finds."""
    model.eval()
    with torch.no_grad(), cast:
        found = torch.cat([model(each).argmax(1) for each in images.split(500)])
    model.train()
    return (found == labels).float().mean().item()


def main() -> None:
    """Train, and print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="dls", help="dls, global-topk, layerwise-topk or dense")
    parser.add_argument("--density", type=float, default=0.01, help="share of the gradient sent")
    parser.add_argument("--steps", type=int, default=0, help="training steps (default: 12 epochs)")
    parser.add_argument("--batch", type=int, default=64, help="images in a rank's mini-batch")
    parser.add_argument("--lr", type=float, default=0.05, help="the largest learning rate")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument(
        "--bfloat16", action="store_true", help="multiply in bfloat16; faster where there is AMX"
    )
    parser.add_argument("--dataset", default="fashion-mnist", help="or digits, which come with dls")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set's files")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    device = dls.torch.device()  # dls
    dataset = data.load(given.dataset, given.data_dir)
    images = torch.from_numpy(dataset.normalise(dataset.train_images))
    labels = torch.from_numpy(dataset.train_labels.copy())
    model = resnet18(images.shape[1], dataset.classes, given.width).to(device)

    method = {} if given.method == "dense" else {"density": given.density}
    sync = dls.torch.attach(model, given.method, **method)  # dls
    rank, ranks = sync.comm.rank, sync.comm.size
    torch.manual_seed(given.seed + 1 + rank)  # each rank draws other images

    steps = given.steps or 12 * len(images) // (given.batch * ranks)
    optimizer = torch.optim.SGD(
        model.parameters(), given.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, steps, pct_start=0.2)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=given.bfloat16)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        drawn = torch.randint(len(images), (given.batch,))
        x, y = augmented(images[drawn], dataset.mirror).to(device), labels[drawn].to(device)
        with cast:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        sync.wait()  # dls
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if rank == 0 and (step % 50 == 0 or step in (1, steps)):
            seconds = time.perf_counter() - start
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {seconds:.1f} s", flush=True)

    if rank == 0:
        test = torch.from_numpy(dataset.normalise(dataset.test_images)).to(device)
        labels = torch.from_numpy(dataset.test_labels.copy()).to(device)
        share = accuracy(model, test, labels, cast)
        print(f"test accuracy {100 * share:.2f} %")
    sync.close()


if __name__ == "__main__":
    main()
