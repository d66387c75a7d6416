"""A grid of trainings and what its differences say: the engine of `training_scripts/run_study.py`.

`grid` reads the grid, `preparation` makes what its models share, `jobs` trains and evaluates, `comparisons` answers
the questions from the results, `report` and `plots` show them.
"""
