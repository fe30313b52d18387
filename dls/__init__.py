"""DLS: data-parallel training over MPI with sparsified gradients."""

__version__ = "0.1.0"
