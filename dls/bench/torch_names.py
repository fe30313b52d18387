"""The names of what `python -m dls.bench torch` compares, read without PyTorch."""

from __future__ import annotations

from dls.cli import UsageError
from dls.tools import variants

NONE = "none"
"""The training step without any communication."""
DDP = "ddp"
"""PyTorch's DistributedDataParallel over gloo."""
GLOO = "gloo"
"""In place of a contender: the start of what all variants of DDP need."""
HOOKS = {"fp16": False, "powersgd": True, "topk": True}
"""DDP's hooks, and whether they take a number."""
DEFAULT = (
    NONE,
    DDP,
    "ddp/fp16",
    "ddp/powersgd=1/bucket_mb=1000",
    "ddp/powersgd=4/bucket_mb=1000",
    "ddp/topk=0.01",
    "dense",
    "global-topk",
    "layerwise-topk",
    "dls",
    "dls/density=0.001",
    "dls/value_dtype=bfloat16",
)
"""What is compared unless others are named.

PowerSGD has one bucket: with several, gloo confuses their messages now and then, and ends the run.
"""
MODELS = ("resnet18", "gpt", "mlp", "small")
"""The models that `dls.bench.torch_models` has."""
MEMORY = "memory"
"""In place of a rate: ranks of this machine itself, which share its memory."""


def hook_of(name: str) -> tuple[str, float, float]:
    """The hook of a variant of DDP ("" for none), its number, and the size of buckets in MB.

    0 stands for a number that is not given. UsageError for a name that cannot be read.
    """
    kind, number, bucket_mb = "", 0.0, 0.0
    for part in name.split("/")[1:]:
        option, _, text = part.partition("=")
        value = _number(name, text)
        if option == "bucket_mb" and value:
            bucket_mb = value
        elif option in HOOKS and not kind and bool(value) == HOOKS[option]:
            kind, number = option, value
        else:
            raise UsageError(f"{name}: ddp has no variant {part!r}")
    return kind, number, bucket_mb


def _number(name: str, text: str) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        raise UsageError(f"{name}: {text!r} is no number") from None


def check(name: str) -> str:
    """The name itself, as an option's type. UsageError where nothing has it."""
    if name.split("/")[0] == DDP:
        hook_of(name)
    elif name != NONE:
        variants.check(name)
    return name


def model_and_batch(text: str) -> str:
    """NAME/BATCH itself, as an option's type: a model and images, or pieces of text, a rank."""
    name, _, batch = text.partition("/")
    if name not in MODELS or not batch.isdecimal() or int(batch) < 1:
        raise ValueError(text)
    return text
