"""A model file and what its card says: read, written, imported as published, and its reference of training patches.

It may import `data`, `statistics`, `networks` and what lies below; engines run it.
"""
