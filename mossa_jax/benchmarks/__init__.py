"""Measurements of CKA beside the tools and procedures in common use: `launch.bench_cka`."""
