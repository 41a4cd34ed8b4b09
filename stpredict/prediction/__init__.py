"""Predict one slide: what is asked for, its spots, its patches through an engine, its shards, its result.

It may import `engines`, `result` and what lies below them; many slides are the business of `batch`.
"""
