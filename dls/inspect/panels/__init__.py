"""How each picture is drawn, on axes of matplotlib's.

over_steps   curves, one for each group
layers       lines for the layers, and k as colours
timeline     the phases of a step, layer by layer
bars         bytes as dots, and the time of a step as bars
labels       names, legends, and numbers along axes
"""
