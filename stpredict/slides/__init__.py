"""Slides: open one, its resolution, tissue, lattice of spots, and the pixels of patches. They know no genes.

They may import `storage` and the ground floor (`console`, `machine`, `errors`, `arrays`).
"""
