"""Engines times loads to run folders."""
