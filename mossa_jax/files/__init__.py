"""Files: paths on disks and in object stores, atomic writes, the run folder, the hub, and the cache."""
