"""`python -m dls.bench COMMAND`: what steps, selections and exchanges cost on this machine.

select     a training step's selection, beside the least time that the memory allows
adjust     what DLS's adjustment adds to it
model      a training step's forward and backward pass, beside PyTorch's
exchange   under mpirun: the sparse allgather, beside the MPI library's collectives
step       under mpirun: whole training steps with each method
network    the same over slow networks, on hosts that this machine plays itself

A command measures rows and prints them as one table. To add one, write a module whose `measure`
yields rows (`dls.tools.rows`), and name it in COMMANDS of `dls.bench.commands`. `exchange` and
`step` measure the ranks that mpirun starts, of which rank 0 prints.
"""
