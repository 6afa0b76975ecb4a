"""Prediction jobs: many pictures and questions, resumable, on one machine or on a cluster."""
