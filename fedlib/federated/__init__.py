"""Flower's ClientApp and ServerApp, strategies and privacy."""
