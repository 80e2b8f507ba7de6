"""What is measured: speed beside other engines and the machine's own limits, and how well a model predicts a text.

Only the command line and `benchmarks/` come here; nothing that computes does.
"""
