"""Foundations that every other package uses: conventions, errors, configuration, files."""
