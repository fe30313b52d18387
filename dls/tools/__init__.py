"""What the programs beside training share: hosts that one machine plays, reports of measurements,
and drawing.
"""
