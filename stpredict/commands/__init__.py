"""The work of each command: take its inputs one after the other, print what comes of them, choose the exit code.

A file per command. It may import every room but `cli`, whose options and help texts call it.
"""
