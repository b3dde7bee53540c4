"""What a run does about faults: killed processes, full disks, numbers that are not finite, collapse."""
