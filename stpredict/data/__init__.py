"""Measured sections: a reader per published layout, genes and panels, and the patches cut from their images.

It may import `statistics`, `slides` and what lies below, and knows no network.
"""
