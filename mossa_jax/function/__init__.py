"""What a model does with its layers: its answers.

exact_match.py scores greedy answers on test prompts.
"""
