"""Prediction jobs: many images and questions, resumable, on one machine or on a cluster."""
