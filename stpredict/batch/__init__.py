"""Many slides, in many processes and on many machines: find the slides of a call, share them out, let others help.

It may import `prediction`, which knows one slide, and what lies below; not `training`, `evaluation` or `rendering`.
"""
