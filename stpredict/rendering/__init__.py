"""Draw results as maps, overlays, channels, spots and pages, all aligned with the slide. A file per style.

It may import `prediction`, `result` and what lies below; not `evaluation`.
"""
