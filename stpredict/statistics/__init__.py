"""The maths that other rooms use: scores, intervals, colour and texture features, objectives, units of expression.

It may import `networks` and what lies below, and reads no file.
"""
