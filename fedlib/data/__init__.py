"""Prepared sets, who holds which case, batches and augmentation."""
