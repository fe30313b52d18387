"""What makes a training a program: settings, start, signals, the folder's lock, progress, and which
code it is.
"""
