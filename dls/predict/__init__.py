"""`python -m dls.predict`: what a run's step would take on another network, with other ranks,
methods and densities, replayed from its trace.
"""
