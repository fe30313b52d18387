"""What other programs call the settings, for hints about unknown names.

Names have underscores here; on the command line they may have dashes.
"""

from __future__ import annotations

NAMES = {
    "lr": ("base_lr", "eta", "eta0", "init_lr", "initial_lr", "learning_rate", "step_size"),
    "lr_schedule": (
        "decay",
        "gamma",
        "lr_decay",
        "lr_scheduler",
        "lr_scheduler_type",
        "milestones",
        "schedule",
        "scheduler",
    ),
    "lr_warmup": ("num_warmup_steps", "warmup", "warmup_epochs", "warmup_ratio", "warmup_steps"),
    "momentum": ("mom", "mu"),
    "weight_decay": ("l2", "l2_penalty", "l2_reg", "wd"),
    "clip_norm": (
        "clip",
        "clip_grad",
        "clip_grad_norm",
        "clip_value",
        "grad_clip",
        "gradient_clip_val",
        "gradient_clipping",
        "max_grad_norm",
        "max_norm",
    ),
    "batch_size": (
        "b",
        "batch",
        "bs",
        "local_batch_size",
        "mb",
        "mini_batch",
        "mini_batch_size",
        "per_device_train_batch_size",
        "per_gpu_batch_size",
        "train_batch_size",
    ),
    "epochs": ("epoch", "max_epochs", "n_epochs", "num_epochs", "num_train_epochs"),
    "steps": (
        "iterations",
        "iters",
        "max_iter",
        "max_iters",
        "max_steps",
        "num_iterations",
        "num_steps",
        "total_steps",
        "train_steps",
    ),
    "seed": ("manual_seed", "random_seed", "random_state", "rng_seed"),
    "model": ("arch", "architecture", "model_name", "model_name_or_path", "net", "network"),
    "mlp_widths": (
        "hidden",
        "hidden_dim",
        "hidden_dims",
        "hidden_layers",
        "hidden_size",
        "hidden_sizes",
        "hidden_units",
        "layers",
        "widths",
    ),
    "dataset": ("data", "data_set", "dataset_name", "task", "train_data"),
    "data_dir": (
        "data_folder",
        "data_path",
        "data_root",
        "datadir",
        "dataset_dir",
        "dataset_path",
        "root",
    ),
    "synthetic_classes": ("classes", "n_classes", "num_classes"),
    "synthetic_shape": ("image_shape", "image_size", "img_size", "input_shape", "input_size"),
    "synthetic_size": ("n_samples", "num_samples", "num_train", "train_size"),
    "augment": ("augmentation", "data_augmentation", "transform", "transforms"),
    "method": (
        "algo",
        "algorithm",
        "comm_hook",
        "compress",
        "compression",
        "compressor",
        "grad_compression",
        "hook",
        "sparsifier",
        "strategy",
    ),
    "density": (
        "keep_ratio",
        "topk_ratio",
    ),
    "density_warmup": ("compression_warmup", "sparsity_warmup", "warmup_density"),
    "value_dtype": (
        "amp",
        "bf16",
        "bfloat16",
        "dtype",
        "float16",
        "fp16",
        "fp16_allreduce",
        "half",
        "mixed_precision",
        "precision",
        "torch_dtype",
    ),
    "collective": ("allgather", "allreduce", "aggregation", "communicator", "reducer"),
    "backend": ("accelerator", "cpu", "cuda", "device", "gpu", "gpus", "no_cuda", "use_cuda"),
    "threads": ("n_threads", "num_threads", "omp_num_threads", "torch_threads"),
    "bucket_size": ("bucket", "bucket_cap_mb", "bucket_mb", "fusion_threshold"),
    "timeout": ("comm_timeout", "ddp_timeout", "dist_timeout"),
    "elastic": ("fault_tolerance", "fault_tolerant"),
    "on_nan": ("detect_anomaly", "nan", "skip_nan", "terminate_on_nan"),
    "out": (
        "checkpoint_dir",
        "default_root_dir",
        "experiment_dir",
        "exp_dir",
        "log_dir",
        "logdir",
        "name",
        "o",
        "out_dir",
        "output",
        "output_dir",
        "output_path",
        "run_name",
        "save_dir",
        "save_path",
        "work_dir",
    ),
    "checkpoint_every": (
        "checkpoint_freq",
        "checkpoint_interval",
        "save_every",
        "save_freq",
        "save_interval",
        "save_steps",
    ),
    "keep_checkpoints": ("max_checkpoints", "max_to_keep", "save_top_k", "save_total_limit"),
    "eval_every": (
        "check_val_every_n_epoch",
        "eval_freq",
        "eval_interval",
        "eval_steps",
        "val_check_interval",
        "val_every",
    ),
    "trace_every": (
        "log_every",
        "log_every_n_steps",
        "log_freq",
        "log_interval",
        "logging_steps",
        "print_every",
        "print_freq",
    ),
    "progress": ("disable_tqdm", "quiet", "tqdm", "verbose", "progress_bar"),
}
"""Our settings, and what other programs call each."""

ALIASES = {theirs: ours for ours, names in NAMES.items() for theirs in names}
"""Other programs' names, and our setting for each."""

FLAGS = frozenset({"config", "help", "import", "imports", "resume", "version", "workers"})
"""Flags of the command line that are not settings."""

RANKS = "mpirun -n N starts N ranks, --workers N trains with N workers in one process"
"""The hint for names of the number of ranks."""
DENSITY = (
    "--density is the share of the values that is sent: --density 0.01 is a sparsity of 0.99 and a"
    " compression ratio of 100"
)
"""The hint for names that may stand for that share, for the rest, for a quotient or a number."""
OPTIMIZER = "the optimizer is SGD; its settings are --lr, --momentum, --nesterov and --weight-decay"
"""The hint for names of optimizers and their settings."""
RESUME = "--resume continues from the newest checkpoint in --out"
"""The hint for names of a checkpoint to start from."""
ERROR_FEEDBACK = "error feedback is always on"
"""The hint for names of the residual."""
ACCUMULATION = "gradients are not accumulated over mini-batches; --batch-size sets their size"
"""The hint for names of gradient accumulation."""
TRACE = "a run is recorded in its folder, --out; dls inspect shows it"
"""The hint for names of loggers."""

_TOPICS = {
    DENSITY: (
        "compress_ratio",
        "compression_ratio",
        "k",
        "ratio",
        "sparse_ratio",
        "sparsity",
        "sparsity_ratio",
        "top_k",
        "topk",
    ),
    RANKS: (
        "devices",
        "dist_url",
        "local_rank",
        "master_addr",
        "master_port",
        "n",
        "nnodes",
        "np",
        "nproc",
        "nproc_per_node",
        "nprocs",
        "num_machines",
        "num_nodes",
        "num_processes",
        "num_workers",
        "processes",
        "rank",
        "ranks",
        "world_size",
    ),
    OPTIMIZER: (
        "adam",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "betas",
        "eps",
        "opt",
        "optim",
        "optimizer",
        "sgd",
    ),
    RESUME: (
        "checkpoint",
        "ckpt",
        "ckpt_path",
        "continue",
        "load",
        "load_checkpoint",
        "restart",
        "resume_from",
        "resume_from_checkpoint",
    ),
    ERROR_FEEDBACK: ("ef", "error_feedback", "memory", "residual"),
    ACCUMULATION: (
        "accumulate_grad_batches",
        "accumulation_steps",
        "backward_passes_per_step",
        "grad_accum",
        "gradient_accumulation_steps",
    ),
    TRACE: ("log", "logger", "report_to", "tensorboard", "trace", "wandb"),
}
_ALONE = {
    name: f"--{name} is a flag of the command line alone"
    for name in ("config", "import", "resume", "workers")
}
ELSEWHERE = {name: words for words, names in _TOPICS.items() for name in names} | _ALONE
"""Names that stand for no setting of ours, and what to say of each."""
