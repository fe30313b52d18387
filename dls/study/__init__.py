"""`python -m dls.study FILE…`: runs every method of an experiment file at every density and seed,
and reports what they reached.

Every run is an ordinary `mpirun python -m dls.train --resume=auto`: what was interrupted goes on,
what is complete stays, and a run that was made with other settings, or by code that has changed
since, is named, never reused in silence. Ctrl-C or SIGTERM ends it with a checkpoint. Seeds come
one after the other, each with all methods, so that early results already compare.
"""
