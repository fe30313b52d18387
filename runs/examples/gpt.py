"""A small GPT on the bytes of text, a training program for one process or several under mpirun.

    python runs/examples/gpt.py
    mpirun -n 2 python runs/examples/gpt.py --text my-folder --method dls --density 0.01

It learns Python from the sources of the standard library unless --text names a file, or a folder
of files, and shows at the end what it writes by itself. The lines that dls.torch adds to an
ordinary PyTorch program are marked.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dls.torch  # dls

BYTES = 256
"""The vocabulary."""


class Block(nn.Module):
    """Attention to what came before, then a layer for each place by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [N, T, width]."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(heard.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Gives for each byte of a text the scores of the byte that follows."""

    def __init__(self, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.byte = nn.Embedding(BYTES, width)
        self.place = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 64)) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)
        for embedding in (self.byte, self.place):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """text: [N, T], the bytes; returns [N, T, BYTES]."""
        places = torch.arange(text.shape[1], device=text.device)
        x = self.byte(text) + self.place(places)
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, text: bytes, length: int, temperature: float = 0.7) -> bytes:
        """The text with so many bytes more, drawn one by one."""
        device = self.head.weight.device
        for _ in range(length):
            seen = torch.tensor(list(text[-self.context :]), device=device)
            scores = self(seen[None])[0, -1] / temperature
            text += bytes([int(torch.multinomial(scores.softmax(0), 1))])
        return text


def read(place: Path) -> torch.Tensor:
    """All bytes of a file, or of the files in a folder (Python's sources where it has any)."""
    files = [place]
    if place.is_dir():
        files = sorted(place.glob("*.py")) or sorted(each for each in place.iterdir())
    joined = b"\n".join(each.read_bytes() for each in files if each.is_file())
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def draw(text: torch.Tensor, count: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of the text from random places, and the same one byte on: both [count, context]."""
    starts = torch.randint(len(text) - context, (count, 1))
    pieces = text[starts + torch.arange(context + 1)].long()
    return pieces[:, :-1], pieces[:, 1:]


def main() -> None:
    """Train, and print what the model writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a file or a folder (default: Python's library)")
    parser.add_argument("--method", default="dls", help="dls, global-topk, layerwise-topk or dense")
    parser.add_argument("--density", type=float, default=0.01, help="share of the gradient sent")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--batch", type=int, default=8, help="pieces of text in a rank's batch")
    parser.add_argument("--context", type=int, default=128, help="bytes of a piece")
    parser.add_argument("--width", type=int, default=256, help="of a layer; 256 gives 4.9 M values")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--sample", type=int, default=400, help="bytes to write at the end")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    device = dls.torch.device()  # dls
    text = read(given.text or Path(sysconfig.get_path("stdlib")))
    model = GPT(given.width, given.layers, given.context).to(device)

    method = {} if given.method == "dense" else {"density": given.density}
    sync = dls.torch.attach(model, given.method, **method)  # dls
    rank = sync.comm.rank
    torch.manual_seed(given.seed + 1 + rank)  # each rank draws other pieces

    optimizer = torch.optim.AdamW(model.parameters(), given.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, given.steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(1, given.steps + 1):
        x, y = (each.to(device) for each in draw(text, given.batch, given.context))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        sync.wait()  # dls
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if rank == 0 and (step % 50 == 0 or step in (1, given.steps)):
            seconds = time.perf_counter() - start
            print(f"step {step}: {loss.item():.3f} nats a byte, {seconds:.1f} s", flush=True)

    if rank == 0 and given.sample:
        written = model.write(b"def ", given.sample)
        print(written.decode(errors="replace"))
    sync.close()


if __name__ == "__main__":
    main()
