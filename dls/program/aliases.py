"""What people call the settings elsewhere, and what they look for among them."""

from __future__ import annotations

ALIASES = {
    "learning_rate": "lr",
    "batch": "batch_size",
    "bs": "batch_size",
    "data": "dataset",
    "data_path": "data_dir",
    "data_root": "data_dir",
    "network": "model",
    "arch": "model",
    "compressor": "method",
    "compression": "method",
    "algorithm": "method",
    "sparsifier": "method",
    "ratio": "density",
    "sparsity": "density",
    "compression_ratio": "density",
    "k": "density",
    "topk": "density",
    "iterations": "steps",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "scheduler": "lr_schedule",
    "warmup": "lr_warmup",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "clip": "clip_norm",
    "max_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "device": "backend",
    "gpu": "backend",
    "cuda": "backend",
    "cpu": "backend",
    "num_threads": "threads",
    "output": "out",
    "output_dir": "out",
    "out_dir": "out",
    "save_dir": "out",
    "log_dir": "out",
    "fp16": "value_dtype",
    "dtype": "value_dtype",
    "save_every": "checkpoint_every",
    "log_every": "trace_every",
}
"""What people call a setting elsewhere, and what it is called here."""
FLAGS = frozenset({"config", "help", "import", "imports", "resume", "version", "workers"})
"""Flags of the command line that are no settings."""
RANKS = "mpirun -n says how many ranks there are, or --workers"
OPTIMIZER = "SGD is the one optimizer, see --momentum, --nesterov and --weight-decay"
ELSEWHERE = {
    "num_workers": RANKS,
    "nprocs": RANKS,
    "np": RANKS,
    "ranks": RANKS,
    "nproc_per_node": RANKS,
    "world_size": RANKS,
    "optimizer": OPTIMIZER,
    "opt": OPTIMIZER,
    **{
        name: f"--{name} is a flag of the command line alone"
        for name in ("config", "import", "resume", "workers")
    },
}
"""What people look for among the settings, and where it is."""
