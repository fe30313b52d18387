"""Train several times under one mpirun: each argument is one command line of dls.train."""

import shlex
import sys

from dls.train import main

for line in sys.argv[1:]:
    status = main(shlex.split(line))
    assert status == 0, (status, line)
