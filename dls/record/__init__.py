"""What a run leaves on the disk: its trace, its checkpoints, and how files are written so that they
stay whole.
"""
