"""Draw results: maps, overlays, channels, spots and pages that lie on the slide. A file per style.

It may import `prediction`, `result` and what lies below; not `evaluation`.
"""
