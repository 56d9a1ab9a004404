"""Devices: the mesh, the one sharding table, chips and their memory."""
