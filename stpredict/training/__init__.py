"""Make weights from measured sections: prepare a run, teach, fit, cross-validate.

It may import `evaluation` and what lies below it.
"""
