"""Many slides, in many processes and on many machines: which slides a call means, who predicts which, who helps.

It may import `prediction`, which knows one slide, and what lies below; not `training`, `evaluation` or `rendering`.
"""
