"""A whole run, stage by stage; each stage is resumable."""
