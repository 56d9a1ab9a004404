"""What a run tells about itself: its progress, its time, its traces.

progress.py   how far long work is, with the time left
goodput.py    where the time goes: useful work and named losses
profiles.py   traces of a few steps
trackers.py   mirrors of metrics.jsonl: TensorBoard and Weights & Biases
"""
