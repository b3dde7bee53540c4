"""Costs of a run's programs on TPUs, estimated by the TPU compiler without a TPU."""
