"""What a run says about itself: progress, goodput, profiles, and trackers."""
