"""Read and write the result of one slide; the frame that its pictures share; cohorts of results.

It may import `slides` and `storage`, and knows neither models nor engines.
"""
