"""Other similarity measures beside linear CKA."""
