"""Predict one slide: check the request, choose spots, run patches through an engine into shards, write the result.

It may import `engines`, `result` and what lies below them. Many slides are the business of `batch`.
"""
