"""What each command does with all that it was given: inputs one after the other, what is printed, exit codes.

A file per command. It may import every room but `cli`, whose options and help texts call it.
"""
