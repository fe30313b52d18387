"""`python -m dls.theory`: Eq. 8, Eq. 9, Property 1 and Property 2 against real networks.

The gradient variance of neighbouring layers, at initialisation and during training, is set beside
what Eq. 8, Eq. 9 and the corrected form (docs/algorithm.md, section 5) predict; Algorithm 2 is
repeated on the gradients of a run until its choice is that of Global Top-k. One process, one
thread, the numpy reference; the same options give the same figures on the same machine.
"""
