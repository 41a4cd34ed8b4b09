"""Compare systems: train and test each on the same folds, genes, spots and seeds, and put all of them into one table.

It may import `training` and what lies below it.
"""
