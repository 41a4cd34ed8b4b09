"""Files of any content: written whole or not at all, HDF5 that survives a full disk, stored text, safe cells of CSV.

It may import the ground floor only.
"""
