"""Layers of networks that are too large to be trained here, written down from their papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dls.exchange.layout import Layer, Layout

Named = tuple[str, int]
"""A layer's name and how many values its gradient has."""


def resnet50() -> Layout:
    """ResNet-50 for 1,000 classes: He et al. (2016), "Deep Residual Learning for Image
    Recognition", table 1.
    """
    return _layout(_resnet(blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512)))


def _resnet(blocks: Sequence[int], widths: Sequence[int]) -> Iterator[Named]:
    yield "conv1", 7 * 7 * 3 * 64
    yield "norm1", 2 * 64
    inputs = 64
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            yield from _bottleneck(f"stage{stage + 2}.{block}", inputs, width, block == 0)
            inputs = 4 * width
    yield "linear", inputs * 1000 + 1000


def _bottleneck(name: str, inputs: int, width: int, projects: bool) -> Iterator[Named]:
    """1x1, 3x3 and 1x1 convolutions, each with batch norm; the first of a stage projects its
    shortcut.
    """
    convolutions = [inputs * width, 9 * width * width, width * 4 * width]
    channels = [width, width, 4 * width]
    if projects:
        convolutions.append(inputs * 4 * width)
        channels.append(4 * width)
    for number, (size, outputs) in enumerate(zip(convolutions, channels, strict=True)):
        yield f"{name}.conv{number}", size
        yield f"{name}.norm{number}", 2 * outputs


def bert_large() -> Layout:
    """BERT-large: Devlin et al. (2019), "BERT: Pre-training of Deep Bidirectional Transformers for
    Language Understanding", section 3: 24 layers of 1,024, a vocabulary of 30,522 word pieces.
    """
    return _layout(_bert(layers=24, width=1024, inner=4096, words=30_522, positions=512))


def _bert(layers: int, width: int, inner: int, words: int, positions: int) -> Iterator[Named]:
    norm, square = 2 * width, width * width + width
    yield "words", words * width
    yield "positions", positions * width
    yield "segments", 2 * width
    yield "norm", norm
    for layer in range(layers):
        for part in ("query", "key", "value", "output"):
            yield f"{layer}.{part}", square
        yield f"{layer}.norm1", norm
        yield f"{layer}.inner", width * inner + inner
        yield f"{layer}.outer", inner * width + width
        yield f"{layer}.norm2", norm
    yield "pooler", square


def llama_7b() -> Layout:
    """A transformer of 7 billion parameters: Touvron et al. (2023), "LLaMA: Open and Efficient
    Foundation Language Models", table 2: 32 layers of 4,096, inner width 11,008, a vocabulary of
    32,000.
    """
    return _layout(_llama(layers=32, width=4096, inner=11_008, words=32_000))


def _llama(layers: int, width: int, inner: int, words: int) -> Iterator[Named]:
    yield "words", words * width
    for layer in range(layers):
        for part in ("query", "key", "value", "output"):
            yield f"{layer}.{part}", width * width
        for part in ("gate", "up", "down"):
            yield f"{layer}.{part}", width * inner
        yield f"{layer}.norm1", width
        yield f"{layer}.norm2", width
    yield "norm", width
    yield "head", words * width


def _layout(layers: Iterator[Named]) -> Layout:
    return Layout([Layer(name, size) for name, size in layers])


SHAPES = {"ResNet-50": resnet50, "BERT-large": bert_large, "7 B transformer": llama_7b}
"""By the names under which they are shown."""
