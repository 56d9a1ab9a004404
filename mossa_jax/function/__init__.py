"""The answers of a model, as a measure of its ability.

exact_match.py scores greedy answers on test prompts.
"""
