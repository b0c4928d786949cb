"""Tests of the export step; they run in the export environment."""
