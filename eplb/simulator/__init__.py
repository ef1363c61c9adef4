"""What serving a trace under a placement is like, and how long it takes; pure arithmetic.

`timing` turns loads into seconds with the constants of a `Hardware`, `exchange` counts what travels
in dispatch and combine, `moving` what a migration sends, and `calibration` fits the constants to
measured steps.
"""
