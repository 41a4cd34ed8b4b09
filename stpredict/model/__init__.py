"""Model files and their cards: read, write, import published models, and compare patches with those of training.

It may import `data`, `statistics`, `networks` and what lies below; engines run it.
"""
