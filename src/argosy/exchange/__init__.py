"""Models in and out: other programs' folders of weights become runs, and runs become such folders."""
