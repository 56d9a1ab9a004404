"""Files, on disks and in object stores.

names.py        folder names for any model or task name; digests
paths.py        paths of any file system; copies; this machine's cache folder
write.py        atomic writes: a file or folder is complete or absent
sums.py         digests of a folder's files, in its SHA256SUMS
checked.py      JSON and tables of a run folder, checked when they are read back
growing.py      text files that grow: metrics and logs
metrics.py      metrics.jsonl, whose lines have a check each
lease.py        which run owns a folder in an object store
run_folder.py   the run folder: its owner, its configuration, its metrics
cache.py        folders that one process builds once for all
hub.py          data sets from the Hugging Face hub
"""
