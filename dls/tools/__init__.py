"""What the programs beside training share, one subject a file.

rows         typed rows of measurements, and how they become JSON
reports      files that hold a measurement's rows and the machine they were measured on
machine      the device and the software of this machine
tables       tables for a terminal and in Markdown
numbers      how numbers are written for people
options      options of command lines: lists, ranges, and those that several tools have
variants     methods with settings of their own, by name
networks     the networks that are measured, and the images they are measured with
turns        the warm-up, and contenders that take turns
drawing      the look of each method
plotting     the check for matplotlib, and what all pictures have in common
programs     this Python and its mpirun, as the beginning of a command
hosts        several hosts that one machine plays
"""
