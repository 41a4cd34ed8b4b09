"""Normalisation of stains, which some encoders need before they see patches.

It computes with tensors alone, so that every engine runs it as a part of the network. It may import the ground floor.
"""
