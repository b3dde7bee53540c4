"""Handling of faults: killed processes, full disks, numbers that are not finite, collapse."""
