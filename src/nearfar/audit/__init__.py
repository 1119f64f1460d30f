"""Measurements of AFTER against BEFORE: fidelity, privacy under attack, utility, and a report of them."""
